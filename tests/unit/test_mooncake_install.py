"""How the Mooncake drop-in is switched on: in this process, and in all that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHOSE = """
import mooncake.store, mooncake.async_store, mooncake.mooncake_config
print(mooncake.store.MooncakeDistributedStore.__module__)
"""
OURS = "kvstore.compat.mooncake.store"
LAUNCHER = "kvstore.compat.mooncake"


def run(*arguments: str, folder: Path | None = None, **environment: str) -> str:
    """Run Python; what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**{k: v for k, v in os.environ.items() if "MOONCAKE" not in k}, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def script(folder: Path, code: str, name: str = "script.py") -> str:
    path = folder / name
    path.write_text(textwrap.dedent(code))
    return str(path)


def test_nothing_is_there_unless_it_is_switched_on(tmp_path: Path) -> None:
    code = """
    import importlib.util
    import kvstore.compat.mooncake
    print(importlib.util.find_spec("mooncake"))
    """
    assert run(script(tmp_path, code)) == "None"


def test_install_in_a_program_and_its_children(tmp_path: Path) -> None:
    code = f"""
    import multiprocessing, os, subprocess, sys
    import kvstore.compat.mooncake as m

    def whose(queue):
        import mooncake.store
        queue.put(mooncake.store.MooncakeDistributedStore.__module__)

    if __name__ == "__main__":
        m.install()
        m.install()
        assert m.installed()
        import mooncake, importlib.util
        assert importlib.util.find_spec("mooncake.store") is not None
        from mooncake.store import ReplicateConfig, SUCCESS, MooncakeHostMemAllocator
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            queue = context.Queue()
            child = context.Process(target=whose, args=(queue,))
            child.start()
            assert queue.get(timeout=30) == {OURS!r}, method
            child.join()
        out = subprocess.check_output(
            ["/bin/sh", "-c", '"$0" -c "$1"', sys.executable, {WHOSE!r}], text=True)
        assert out.strip() == {OURS!r}, out
        print("all")
    """
    assert run(script(tmp_path, code)) == "all"


def test_install_comes_before_a_real_mooncake(tmp_path: Path) -> None:
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").write_text("")
    (tmp_path / "mooncake" / "store.py").write_text("")
    (tmp_path / "mooncake" / "engine.py").write_text("class TransferEngine: pass")
    code = """
    import mooncake.store
    import kvstore.compat.mooncake as m
    try:
        m.install()
    except Exception as error:
        print(error)
    """
    said = run(script(tmp_path, code), PYTHONPATH=str(tmp_path))
    assert "is already imported" in said
    code = """
    import kvstore.compat.mooncake as m
    m.install()
    from mooncake.engine import TransferEngine
    import mooncake.store
    print(TransferEngine.__module__, mooncake.store.MooncakeDistributedStore.__module__)
    """
    assert run(script(tmp_path, code), PYTHONPATH=str(tmp_path)) == f"mooncake.engine {OURS}"


@pytest.mark.parametrize("how", ["-c", "-m", "script", "program"])
def test_the_launcher_runs_anything(tmp_path: Path, how: str) -> None:
    code = WHOSE + "import sys; print(sys.argv[1:], __name__)"
    path = script(tmp_path, code, "engine.py")
    command = {
        "-c": ["-c", code],
        "-m": ["-m", "engine"],
        "script": [path],
        "program": [str(tmp_path / "engine")],
    }[how]
    program = Path(script(tmp_path, f"#!{sys.executable}\n{code}", "engine"))
    program.chmod(0o755)
    said = run("-m", LAUNCHER, *command, "--flag", "x y", PYTHONPATH=str(tmp_path))
    assert said.splitlines() == [OURS, "['--flag', 'x y'] __main__"]


def test_spawned_children_of_the_launcher_find_their_main_module(tmp_path: Path) -> None:
    code = """
    import multiprocessing

    def whose(queue):
        import mooncake.store
        queue.put(mooncake.store.MooncakeDistributedStore.__module__)

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(target=whose, args=(queue,))
        child.start()
        print(queue.get(timeout=30))
        child.join()
    """
    path = script(tmp_path, code, "engine.py")
    assert run("-m", LAUNCHER, path) == OURS
    assert run("-m", LAUNCHER, "-m", "engine", PYTHONPATH=str(tmp_path)) == OURS


def test_a_hidden_sitecustomize_runs_too_and_kvstore_is_not_loaded_for_nothing(
    tmp_path: Path,
) -> None:
    script(tmp_path, "print('site of the machine')", "sitecustomize.py")
    code = "import sys; print([n for n in sys.modules if n.split('.')[0] == 'kvstore'])"
    said = run("-m", LAUNCHER, "-c", code, PYTHONPATH=str(tmp_path))
    assert said.splitlines()[-2:] == ["site of the machine", "[]"]


def test_what_cannot_work_is_refused() -> None:
    for arguments in (["-E", "-m", LAUNCHER, "-c", ""], ["-m", LAUNCHER, "/nowhere"]):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert done.returncode != 0 and "kvstore.compat.mooncake" in done.stderr


def test_the_drop_in_needs_nothing_but_the_client() -> None:
    code = """
    import sys, kvstore.compat.mooncake
    heavy = ("grpc", "msgspec", "aiohttp", "google", "numpy", "torch", "lmdb", "asyncio")
    print([name for name in heavy if name in sys.modules])
    """
    assert run("-c", textwrap.dedent(code)) == "[]"
