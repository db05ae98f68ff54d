"""``llmservice plan``: what fits on which device, and why, without a cluster.

What-if options are written into the spec before it is judged, so they obey the same rules as the
file; ``--config`` and ``--model`` are specs with nothing but a model in them.
"""

import argparse
import difflib
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic.alias_generators import to_camel

from llmservice.api import names
from llmservice.api.admission import admission_violations
from llmservice.api.rules import Violation
from llmservice.cli import color
from llmservice.cli.bar import draw
from llmservice.cli.documents import DocumentError, load_documents, load_services, service_name
from llmservice.cli.options import EXIT_INVALID, EXIT_USAGE
from llmservice.core.flags import supported_versions
from llmservice.core.observed import Manifest
from llmservice.core.planner.catalog import find_model, known_models, model_from_config
from llmservice.core.planner.devices import Device, find_device, known_devices
from llmservice.core.planner.model import UnreadableConfigError
from llmservice.core.planner.outcome import (
    Choice,
    Infeasible,
    Memory,
    Outcome,
    Plan,
    Unplanned,
    Verdict,
)
from llmservice.core.planner.plan import plan
from llmservice.core.planner.rationale import gib
from llmservice.core.planning import find_spec_device, plan_request, plan_status
from llmservice.core.validation import InvalidSpec, ValidSpec, is_refused, validate_spec

_COLUMNS = 100
_CONFIG = "config.json"
_ONE_OBJECT = "it must be one object with the model's fields"
_NEAR_NAMES = 5


@dataclass(frozen=True, slots=True)
class _Subject:
    """Something to plan."""

    file: str
    """Where it was read; for a model of the catalog its id."""
    spec: Manifest | InvalidSpec
    """As written, or why it cannot be read."""
    service: str | None = None
    """None for a model without a service."""

    @property
    def title(self) -> str:
        """What its lines begin with."""
        return self.service or self.file


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``plan`` to the command line."""
    command = commands.add_parser("plan", help="say what fits on which device, and why")
    subject = command.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "files", nargs="*", default=[], metavar="FILE", help="manifest, or - for stdin"
    )
    subject.add_argument("--config", metavar="FILE", help="plan a model's config.json instead")
    subject.add_argument("--model", metavar="ID", help="plan a model of the catalog instead")
    device = command.add_mutually_exclusive_group()
    device.add_argument(
        "--gpu", type=_device_name, metavar="NAME", help="what if: on this device (A10G)"
    )
    device.add_argument("--gpus", action="store_true", help="compare all known devices")
    command.add_argument("--tensor", type=int, metavar="N", help="what if: so many tensor ranks")
    command.add_argument("--max-model-len", type=int, metavar="N", help="what if: so many tokens")
    command.add_argument("--explain", action="store_true", help="draw the memory, give reasons")
    command.add_argument("-o", "--output", choices=("text", "json"), default="text")
    command.set_defaults(run=_run)


def _device_name(text: str) -> str:
    """The short name of a device that the user names by that or by its product label.

    Raises:
        argparse.ArgumentTypeError: no such device is known.
    """
    device = find_device(text)
    if device is None:
        near = _near(text, [known.name for known in known_devices()])
        raise argparse.ArgumentTypeError(f"no device {text!r} is known{near}: --gpus shows all")
    return device.name


def _run(arguments: argparse.Namespace) -> int:
    """Print the plans that were asked for and return the exit code."""
    if wrong := _wrong_usage(arguments):
        print(f"error: {wrong}", file=sys.stderr)
        return EXIT_USAGE
    code, apart = 0, arguments.output == "text" and (arguments.explain or arguments.gpus)
    for number, subject in enumerate(_subjects(arguments)):
        if number and apart:
            print()
        code = max(code, _plan_one(subject, arguments))
    return code


def _wrong_usage(arguments: argparse.Namespace) -> str | None:
    if not arguments.files and not (arguments.gpu or arguments.gpus):
        return "--config and --model need --gpu or --gpus"
    if arguments.gpus and arguments.explain:
        return "--explain needs one device: use --gpu, not --gpus"
    return None


def _plan_one(subject: _Subject, arguments: argparse.Namespace) -> int:
    judged: ValidSpec | InvalidSpec
    if isinstance(subject.spec, InvalidSpec):
        judged = subject.spec
    else:
        judged = validate_spec(subject.service or "model", _what_if(subject.spec, arguments))
    if isinstance(judged, InvalidSpec):
        return _refuse(subject, judged, arguments.output)
    if arguments.gpus:
        return _compare(subject, judged, arguments.output)
    if arguments.output == "json":
        device = _device_json(find_spec_device(judged.spec))
        _print_json(_head_json(subject, judged) | {"device": device} | _json(judged.plan.memory))
    elif arguments.explain:
        print("\n".join(_explained(subject.title, judged)))
    else:
        print(_verdict(subject.title, judged.plan.memory))
    return EXIT_INVALID if is_refused(judged) else 0


def _refuse(subject: _Subject, invalid: InvalidSpec, output: str) -> int:
    place = f"{subject.file}: {subject.service}" if subject.service else subject.file
    for problem in invalid.violations:
        words = problem.message if problem.field == _CONFIG else str(problem)
        print(f"{place}: {words}", file=sys.stderr)
    if output == "json":
        violations = [
            {"field": problem.field, "message": problem.message} for problem in invalid.violations
        ]
        head = {"file": subject.file, "name": subject.title}
        _print_json({**head, "outcome": "Invalid", "violations": violations})
    return EXIT_INVALID


# --- what is planned ------------------------------------------------------------------------------


def _subjects(arguments: argparse.Namespace) -> Iterator[_Subject]:
    if arguments.config is not None:
        yield _of_config(arguments.config)
    elif arguments.model is not None:
        yield _of_model(arguments.model)
    for path in arguments.files:
        yield from _of_file(path)


def _of_file(path: str) -> Iterator[_Subject]:
    try:
        documents = load_services(path)
    except DocumentError as error:
        yield _Subject(path, _invalid("yaml", str(error)), "-")
        return
    if not documents:
        yield _Subject(path, _invalid("kind", f"no {names.KIND} in it"), "-")
    for document in documents:
        violations = tuple(admission_violations(document))
        spec = InvalidSpec(violations) if violations else document["spec"]
        yield _Subject(path, spec, service_name(document))


def _of_config(path: str) -> _Subject:
    try:
        config = _read_config(path)
        model_from_config(_CONFIG, config)
    except (DocumentError, UnreadableConfigError) as error:
        return _Subject(path, _invalid(_CONFIG, str(error)))
    return _Subject(path, _bare_spec({"id": _CONFIG, "architecture": config}))


def _read_config(path: str) -> Manifest:
    if path.lower().endswith(".gguf"):  # gigabytes, and no text
        raise DocumentError("a GGUF file: give the config.json of the model that it was made from")
    documents = list(load_documents(path, _ONE_OBJECT))
    if len(documents) != 1:
        raise DocumentError(_ONE_OBJECT)
    return documents[0]


def _of_model(model_id: str) -> _Subject:
    if find_model(model_id) is None:
        near = _near(model_id, [known.id for known in known_models()])
        words = f"the catalog has no such model{near}: give its config.json with --config"
        return _Subject(model_id, _invalid(_CONFIG, words))
    return _Subject(model_id, _bare_spec({"id": model_id}))


def _bare_spec(model: Manifest) -> Manifest:
    return {"model": model, "engine": {"version": supported_versions()[0]}}


def _invalid(field: str, message: str) -> InvalidSpec:
    return InvalidSpec((Violation(field, message),))


def _near(text: str, known: list[str]) -> str:
    """Known names that contain the text or look like it."""
    lower = {name.lower(): name for name in known}
    alike = difflib.get_close_matches(text.lower(), lower, _NEAR_NAMES)
    within = [name for name in lower if text and text.lower() in name]
    found = [lower[name] for name in dict.fromkeys((*within, *alike))][:_NEAR_NAMES]
    return f" (near it: {', '.join(found)})" if found else ""


def _what_if(spec: Manifest, arguments: argparse.Namespace) -> Manifest:
    """The spec with the options written over it."""
    accelerator, engine = dict(spec.get("accelerator") or {}), dict(spec.get("engine") or {})
    parallelism = dict(engine.get("parallelism") or {})
    product = known_devices()[0].name if arguments.gpus else arguments.gpu
    if product:
        # Resource and memory are those of the device that is replaced.
        accelerator = {"product": product, "count": accelerator.get("count")}
    if arguments.gpus or arguments.tensor is not None:
        accelerator["count"] = None
        parallelism["tensor"] = arguments.tensor
    if arguments.max_model_len is not None:
        engine["maxModelLen"] = arguments.max_model_len
    engine["parallelism"] = parallelism
    return {**spec, "accelerator": accelerator, "engine": engine}


# --- text -----------------------------------------------------------------------------------------


def _verdict(name: str, outcome: Outcome) -> str:
    status = plan_status(outcome)
    return f"{name}: {status['outcome']}: {status['message']}"


def _explained(name: str, valid: ValidSpec) -> Iterator[str]:
    outcome = valid.plan.memory
    status = plan_status(outcome)
    yield f"{name}: {status['outcome']}"
    if (memory := _memory(outcome)) is not None:
        yield _heading(memory)
        yield from draw(memory, color=color.is_wanted())
        yield ""
    yield _wrapped(status["message"])
    if valid.plan.note:
        yield _wrapped(valid.plan.note)
    if isinstance(outcome, Plan):
        yield ""
        yield from _capacity(outcome)
        yield ""
        yield from map(_choice, outcome.choices)
        yield "  * chosen by the planner"


def _memory(outcome: Outcome) -> Memory | None:
    return None if isinstance(outcome, Unplanned) else outcome.memory


def _heading(memory: Memory) -> str:
    return "  one device" if memory.total is None else f"  one device of {gib(memory.total)}"


def _capacity(planned: Plan) -> Iterator[str]:
    length, capacity = planned.knobs.max_model_len, planned.capacity
    yield f"  capacity    {capacity.tokens:,} tokens of KV cache in a replica"
    yield f"              {capacity.concurrency:.2f} requests of {length:,} tokens at once"
    yield f"              {planned.bytes_per_token:,} bytes per token and device"


def _choice(choice: Choice) -> str:
    mark = "*" if choice.chosen else " "
    return _wrapped(choice.why, f"  {mark} {f'{choice.knob} = {choice.value}':<34}  ", " " * 40)


def _wrapped(text: str, first: str = "  ", rest: str = "  ") -> str:
    return textwrap.fill(
        text, _COLUMNS, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )


# --- which device ---------------------------------------------------------------------------------


def _compare(subject: _Subject, valid: ValidSpec, output: str) -> int:
    """The plan on every known device; fewest devices first, then the smallest."""
    request = plan_request(valid.spec, valid.plan.version)
    if isinstance(request, Unplanned):
        if output == "json":
            _print_json(_head_json(subject, valid) | _json(request))
        else:
            print(_verdict(subject.title, request))
        return 0
    rows = [(device, plan(replace(request, device=device))) for device in known_devices()]
    rows.sort(key=lambda row: (not isinstance(row[1], Plan), _devices(row[1]), row[0].memory))
    if output == "json":
        devices = [{"device": _device_json(device), **_json(outcome)} for device, outcome in rows]
        _print_json(_head_json(subject, valid) | {"devices": devices})
    else:
        print("\n".join(_table(subject.title, rows)))
    refused = all(isinstance(outcome, Infeasible) for _, outcome in rows)
    return EXIT_INVALID if refused and valid.spec.engine.plan == "Enforce" else 0


def _devices(outcome: Outcome) -> int:
    return outcome.knobs.devices if isinstance(outcome, Plan) else 0


def _table(name: str, rows: list[tuple[Device, Outcome]]) -> Iterator[str]:
    wide = max(len(device.name) for device, _ in rows)
    yield f"{name}: one replica on each known device"
    yield (
        f"  {'DEVICE':<{wide}} {'MEMORY':>9} {'TENSOR':>6} {'DEVICES':>7} {'LENGTH':>9}"
        f" {'KV TOKENS':>11} {'REQUESTS':>8}"
    )
    for device, outcome in rows:
        start = f"  {device.name:<{wide}} {gib(device.memory):>9} "
        if isinstance(outcome, Plan):
            yield f"{start}{_cells(outcome)}"
        else:  # the remedies after the colon are not about choosing a device
            why = outcome.message.partition(": ")[0]
            yield start + textwrap.shorten(why, _COLUMNS - len(start), placeholder="...")


def _cells(planned: Plan) -> str:
    knobs, capacity = planned.knobs, planned.capacity
    cells = (
        f"{knobs.tensor:>6} {knobs.devices:>7} {knobs.max_model_len:>9,}"
        f" {capacity.tokens:>11,} {capacity.concurrency:>8.1f}"
    )
    return cells if planned.verdict is Verdict.Fits else f"{cells} may not start"


# --- JSON -----------------------------------------------------------------------------------------


def _print_json(document: Manifest) -> None:
    print(json.dumps(document, indent=2))


def _head_json(subject: _Subject, valid: ValidSpec) -> Manifest:
    return {
        "file": subject.file,
        "name": subject.title,
        "model": valid.spec.model.id,
        "version": valid.plan.version,
    }


def _device_json(device: Device | None) -> Manifest | None:
    return None if device is None else {"name": device.name, "memory": device.memory}


def _json(outcome: Outcome) -> Manifest:
    """Everything of an outcome, in bytes and tokens."""
    found: Manifest = {
        "outcome": plan_status(outcome)["outcome"],
        "message": outcome.message,
    }
    if isinstance(outcome, Infeasible):
        found["reason"] = outcome.reason
    if (memory := _memory(outcome)) is not None:
        found["memory"] = asdict(memory)
    if isinstance(outcome, Plan):
        capacity = asdict(outcome.capacity) | {
            "concurrency": outcome.capacity.concurrency,
            "bytes_per_token": outcome.bytes_per_token,
        }
        found |= {
            "knobs": asdict(outcome.knobs),
            "capacity": capacity,
            "choices": [asdict(choice) for choice in outcome.choices],
        }
    return _camel(found)  # type: ignore[no-any-return]


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {to_camel(key): _camel(each) for key, each in value.items()}
    return [_camel(each) for each in value] if isinstance(value, list) else value
