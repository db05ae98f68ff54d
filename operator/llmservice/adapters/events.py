"""Kubernetes events about a service, each said once.

``events.k8s.io/v1``, without series: the reconciler reports changes only, and the same words about
the same service are not repeated within six minutes. An event that cannot be written is dropped,
because nothing may depend on it.
"""

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

from llmservice.adapters.clock import micro_time, utc_now
from llmservice.adapters.ports import Cluster, ClusterError
from llmservice.adapters.resources import EVENT
from llmservice.api import names
from llmservice.core.decision import Event
from llmservice.core.observed import ServiceObject

_log = logging.getLogger(__name__)

REPEAT_SECONDS = 360.0
_REMEMBERED = 4096
_NOTE_LIMIT = 1024
_INSTANCE_LIMIT = 128
_CONTROLLER = f"{names.GROUP}/operator"

_Key = tuple[str, str, str, str]


class EventRecorder:
    """Writes events, and remembers what it said.

    Args:
        cluster: where to.
        instance: who says it, in ``reportingInstance``.
        now: wall clock.
    """

    def __init__(
        self, cluster: Cluster, instance: str, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._cluster = cluster
        self._instance = instance[:_INSTANCE_LIMIT]
        self._now = now
        self._said: OrderedDict[_Key, float] = OrderedDict()

    async def record(self, service: ServiceObject, event: Event) -> None:
        """Write the event, unless the same was said within :data:`REPEAT_SECONDS`."""
        note = event.message[:_NOTE_LIMIT]
        if not self._is_news((service.uid, event.reason, event.action, note)):
            return
        key = service.key
        body = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": f"{key.name}.{uuid.uuid4().hex[:16]}", "namespace": key.namespace},
            "eventTime": micro_time(self._now()),
            "type": event.type,
            "reason": event.reason,
            "action": event.action,
            "note": note,
            "reportingController": _CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "namespace": key.namespace,
                "name": key.name,
                "uid": service.uid,
            },
        }
        try:
            await self._cluster.create(EVENT, key.namespace, body)
        except ClusterError as error:
            _log.warning("event %s of %s was not written: %s", event.reason, key, error)

    def _is_news(self, key: _Key) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._said.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        self._said[key] = now
        self._said.move_to_end(key)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)
        return True
