"""What a manifest may say in ``metadata``; ``validate`` refuses what the API server would.

Only judged, never read: the operator takes name and labels from the object as stored. The fields
that the API server writes are accepted as they come, so that a live object can be validated too.
Their meaning is none of this module's business.
"""

from typing import Annotated, Any

from pydantic import Field

from llmservice.api.types import ApiObject, LabelValue, QualifiedName


class ObjectMeta(ApiObject):
    """metav1.ObjectMeta (k8s.io/apimachinery/pkg/apis/meta/v1/types.go)."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the object; a rule of :mod:`llmservice.api.rules` says what it may look like."""
    namespace: Annotated[str, Field(max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] | (
        None
    ) = None
    """Namespace of the object."""
    labels: dict[QualifiedName, LabelValue] | None = None
    """Labels by which objects are selected."""
    annotations: dict[QualifiedName, str] | None = None
    """Notes of people and programs."""
    finalizers: list[str] | None = None
    """Who wants to act before the object goes."""
    owner_references: list[dict[str, Any]] | None = None
    """Objects with which this one goes."""
    generate_name: str | None = None
    """Unused here: children are named after the service, so it is given a name."""
    uid: str | None = None
    """Written by the API server."""
    resource_version: str | None = None
    """Written by the API server."""
    generation: int | None = None
    """Written by the API server."""
    creation_timestamp: str | None = None
    """Written by the API server."""
    deletion_timestamp: str | None = None
    """Written by the API server."""
    deletion_grace_period_seconds: int | None = None
    """Written by the API server."""
    self_link: str | None = None
    """Written by API servers of old."""
    managed_fields: list[dict[str, Any]] | None = None
    """Written by the API server."""
