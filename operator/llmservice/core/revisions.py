"""Revisions: what an engine pod is made of, hashed, and kept with its rendered pod template.

A revision's hash covers the user's words (model, engine, accelerator, podTemplate), not the
rendered pod, and leaves out what he did not write: a newer operator that renders differently
finds the same hash and keeps using the template stored in the ControllerRevision, so it never
restarts a GPU pod that nobody touched. Field defaults of v1alpha1 are therefore frozen, all but
the default image, which is hashed when written.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llmservice.api import names
from llmservice.api.v1alpha1 import LLMServiceSpec
from llmservice.core.observed import Manifest, RevisionFacts
from llmservice.core.quantities import canonical_quantity


@dataclass(frozen=True, slots=True)
class Revision:
    """One version of the engine pod: its hash, its number and what the engine runs."""

    hash: str
    number: int
    template: Manifest
    """Pod template as rendered when the revision was made."""
    version: str
    """vLLM minor version whose flag table was used."""
    default_sequences: int | None = None
    """Requests that a rank batches where no argument says so, as the memory plan found it."""

    @property
    def engine(self) -> dict[str, Any]:
        """The engine container of the template."""
        containers = self.template["spec"]["containers"]
        return next(c for c in containers if c["name"] == names.ENGINE_CONTAINER)

    @property
    def sequences(self) -> int | None:
        """Requests that one replica batches, over all its ranks; None if nobody knows."""
        given = dict(pairwise(self.engine["args"]))
        batch, ranks = given.get("--max-num-seqs", ""), given.get("--data-parallel-size", "")
        of_rank = int(batch) if batch.isdigit() else self.default_sequences
        return of_rank and max(1, of_rank) * (max(1, int(ranks)) if ranks.isdigit() else 1)

    @property
    def data(self) -> Manifest:
        """``ControllerRevision.data``: enough to make the very same pods again."""
        data = {"engineVersion": self.version, "template": self.template}
        known = self.default_sequences is not None
        return {**data, "maxNumSeqs": self.default_sequences} if known else data


def canonical_json(value: object) -> bytes:
    """Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def content_hash(value: object, length: int = 16) -> str:
    """Hash of a value's canonical JSON: hexadecimal with g for e.

    YAML 1.2 reads ``4339480e38`` as a number, and then it is no label value any more.
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()[:length].replace("e", "g")


def revision_hash(spec: LLMServiceSpec) -> str:
    """Hash of everything that changes an engine pod, and of nothing else."""
    dumped = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        include={"model", "engine", "accelerator", "pod_template"},
    )
    engine = dumped.setdefault("engine", {})
    engine.pop("plan", None)  # decides whether pods are made, not what they are
    if "image" in spec.engine.model_fields_set:
        engine["image"] = spec.engine.image
    for owner, field in ((engine, "kvCacheMemoryBytes"), (dumped["accelerator"], "memory")):
        if field in owner:
            owner[field] = canonical_quantity(owner[field])
    for amounts in engine.get("resources", {}).values():
        for name, amount in amounts.items():
            amounts[name] = canonical_quantity(amount)
    return content_hash(dumped, names.REVISION_HASH_LENGTH)


def pack_data(data: Manifest) -> bytes:
    """``ControllerRevision.data`` as kept in :class:`RevisionFacts`."""
    return zlib.compress(canonical_json(data))


def unpack_revision(hash_: str, facts: RevisionFacts) -> Revision:
    """The stored revision."""
    data = json.loads(zlib.decompress(facts.data))
    return Revision(
        hash_, facts.number, data["template"], data["engineVersion"], data.get("maxNumSeqs")
    )
