"""The cases of matching_cases, asked of the engine and of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import run
from matching_cases import CASES, REFUSED, Case, files, keys_of

import hilum
from hilum.engine.query import Asked
from hilum.errors import BadQuery


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matching") / "store"
    with hilum.open(folder, create=True) as store:
        store.ingest_many([store.prepare(file) for file in files()])
    return folder


@pytest.fixture(scope="module")
def store(path: Path) -> Iterator[hilum.Store]:
    with hilum.open(path, read_only=True) as opened:
        yield opened


def test_there_are_cases_of_every_kind_and_each_names_its_clause():
    assert len(CASES) + len(REFUSED) >= 200
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(re.match(r"PS3\.\d+ [A-Z0-9.]+, \w", clause) for clause, *_ in [*CASES, *REFUSED])
    assert {level for _, level, *_ in CASES} == {"patients", "studies", "series", "instances"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_found_or_not_as_its_clause_has_it(store, case):
    found = [row.uid for row in store.search(Asked(case.level, case.keys, **case.options))]
    assert (case.unique_key in found) == case.expected, case.clause


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_counted_is_a_row_found(store, case):
    asked = Asked(case.level, case.keys, **case.options)
    assert store.count(asked) == len(list(store.search(asked)))


@pytest.mark.parametrize(("clause", "level", "text", "options", "words"), REFUSED)
def test_a_question_that_makes_no_sense_is_refused_in_words(store, clause, level, text, options, words):
    with pytest.raises(BadQuery, match=words):
        store.search(Asked(level, keys_of(text), **options))


FLAGS = {"fuzzy": "--fuzzy", "timezone": "--timezone", "empty_value": ""}  # the command line has it always
UNIQUE_KEY = {"patients": "00100020", "studies": "0020000D", "series": "0020000E", "instances": "00080018"}


def asked_of_commands() -> Iterator[Case]:
    for case in CASES:
        literal_quotes = any('""' in text for _, text in case.keys) and not case.options.get("empty_value")
        if set(case.options) <= set(FLAGS) and not literal_quotes:
            yield case


@pytest.mark.parametrize("case", list(asked_of_commands()), ids=lambda case: case.name)
def test_the_command_line_finds_it_too(path, case):
    words = [f"{name}={text}" for name, text in case.keys]
    for option, value in case.options.items():
        words += [flag for flag in (FLAGS[option], value) if isinstance(flag, str) and flag]
    ran = run("find", case.level, *words, "--store", path, "--json")
    assert ran.code == 0, ran.err
    found = [value for row in ran.lines for value in row[UNIQUE_KEY[case.level]].get("Value", [])]
    assert (case.unique_key in found) == case.expected, case.clause
