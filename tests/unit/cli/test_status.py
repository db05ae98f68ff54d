"""``llmservice status`` without a cluster; with one, see ``tests/contract``."""

import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from llmservice.cli import main, status


def _kubeconfig(folder: Path, server: str) -> str:
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "default",
                "clusters": [{"name": "default", "cluster": {"server": server}}],
                "users": [{"name": "default", "user": {"token": "secret"}}],
                "contexts": [
                    {"name": "default", "context": {"cluster": "default", "user": "default"}},
                    {
                        "name": "team",
                        "context": {"cluster": "default", "user": "default", "namespace": "team"},
                    },
                ],
            }
        ),
        encoding="utf-8",
    )
    return str(path)


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.mark.parametrize("watch", [[], ["--watch"]])
def test_a_cluster_that_does_not_answer_ends_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], watch: list[str]
) -> None:
    """One line that says so, and no traceback."""
    config = _kubeconfig(tmp_path, f"http://127.0.0.1:{_closed_port()}")

    assert main(["status", "qwen", "--kubeconfig", config, *watch]) == 3

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "secret" not in printed.err


def test_a_kubeconfig_that_is_none_ends_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken file is named as the cause."""
    path = tmp_path / "kubeconfig"
    path.write_text("not a kubeconfig", encoding="utf-8")

    assert main(["status", "--kubeconfig", str(path)]) == 3
    assert capsys.readouterr().err.startswith("error: no usable kubeconfig: ")


@pytest.mark.parametrize("command", ["status", "operator"])
def test_no_kubeconfig_is_one_line_and_no_traceback(tmp_path: Path, command: str) -> None:
    """Each command that needs a cluster says which file is missing, and ends with three."""
    missing = str(tmp_path / "none")
    ended = subprocess.run(
        [sys.executable, "-m", "llmservice", command, "--kubeconfig", missing],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.stderr == f"error: no usable kubeconfig: {missing} does not exist\n"
    assert ended.returncode == 3


class _Empty(BaseHTTPRequestHandler):
    """An API server without any object."""

    def do_GET(self) -> None:
        body = b'{"items": [], "metadata": {}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def empty_cluster() -> Iterator[str]:
    """Its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "namespace"),
    [
        ([], "default"),
        (["--context", "team"], "team"),
        (["--context", "team", "-n", "other"], "other"),
    ],
)
def test_the_namespace_is_that_of_the_context(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    empty_cluster: str,
    words: list[str],
    namespace: str,
) -> None:
    """As kubectl does it: told, else the context's, else default."""
    config = _kubeconfig(tmp_path, empty_cluster)

    assert main(["status", "--kubeconfig", config, *words]) == 1
    assert capsys.readouterr().err == f"no LLMService in namespace {namespace}\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_color_unless_it_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase is colored by verdict; NO_COLOR is honored (https://no-color.org)."""
    service = {"metadata": {"name": "qwen", "generation": 1}}
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", _Terminal())
    assert status._colored("text", service) == "\033[33mtext\033[0m"

    monkeypatch.setenv("NO_COLOR", "1")
    assert status._colored("text", service) == "text"
