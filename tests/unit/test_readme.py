"""The README tells the truth: its examples run, its tables are those of the code."""

import re
import subprocess
import sys
from pathlib import Path

from kvstore import config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_configuration_table_is_the_codes() -> None:
    deploy = (ROOT / "deploy/README.md").read_text()
    shown = deploy.split("<!-- config table -->")[1].split("<!-- end of config table -->")[0]
    assert shown.strip() == config.table().strip(), "paste `kvstore.config.table()` into it"


def test_the_first_example_runs() -> None:
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    subprocess.run([sys.executable, "-c", example], check=True, timeout=60)


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_folder_that_is_named_exists() -> None:
    for folder in set(re.findall(r"`([a-z]+/[a-z/_]*)`", README)):
        assert (ROOT / folder).exists(), folder
