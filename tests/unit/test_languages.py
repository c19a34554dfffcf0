"""The examples in other languages, as they are told: one beginning, links that lead somewhere, versions of one page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from streamtask.devbroker.jars import KAFKA_VERSION

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("java", "node", "go", "kcat")
SCREEN_LINES = 50


def read(language: str, file: str = "README.md") -> str:
    return (ROOT / "examples" / language / file).read_text()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_readme_is_one_screen_and_its_links_lead_somewhere(language: str) -> None:
    text = read(language)
    assert len(text.splitlines()) <= SCREEN_LINES
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        assert (ROOT / "examples" / language / target).exists(), target


def test_all_begin_with_the_same_commands() -> None:
    first = [re.findall(r"^```sh\n(.*?)^```", read(language), re.M | re.S)[0] for language in LANGUAGES]
    assert len(set(first)) == 1


def test_the_page_names_the_versions_that_the_examples_use() -> None:
    name = "{http://maven.apache.org/POM/4.0.0}"
    pom = ElementTree.fromstring(read("java", "pom.xml"))
    jars = {d.findtext(f"{name}artifactId"): d.findtext(f"{name}version") for d in pom.iter(f"{name}dependency")}
    kafkajs = json.loads(read("node", "package.json"))["dependencies"]["kafkajs"]
    franz = re.search(r"twmb/franz-go v(\S+)", read("go", "go.mod"))
    assert franz is not None
    assert jars["kafka-clients"] == KAFKA_VERSION
    page = (ROOT / "docs" / "languages.md").read_text()
    for client in (f"kafka-clients {KAFKA_VERSION}", f"kafkajs {kafkajs}", f"franz-go {franz[1]}"):
        assert client in page


def test_a_lock_names_no_address_of_a_registry() -> None:
    packages = json.loads(read("node", "package-lock.json"))["packages"]
    assert packages["node_modules/kafkajs"]["integrity"]
    assert not [name for name, package in packages.items() if "resolved" in package]
