"""How long does a query take, in process, on a store that is open?

    pytest benchmarks/bench_find.py --benchmark-enable

2,000 studies of one instance; one round is one query. `get` is the limit: one look-up in the index.
"""

import corpus
import ingest
import pytest

import hilum

STUDIES = 2_000
ASKED = corpus.study(777)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("find") / "store")
    ingest.ingest("studies", STUDIES, path)
    with hilum.open(path, read_only=True) as opened:
        yield opened


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"StudyInstanceUID": ASKED.uid}, [ASKED.uid]),
        ({"AccessionNumber": ASKED.accession}, [ASKED.uid]),
        ({"PatientID": ASKED.patient_id}, [corpus.study(776).uid, ASKED.uid]),
        ({"PatientName": "*smi*"}, list(corpus.names_with("smi", STUDIES))),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_find_by_a_key(benchmark, store, keys, expected):
    rows = benchmark(lambda: [row.uid for row in store.find("studies", keys)])
    assert sorted(rows) == sorted(expected)


def test_find_the_newest_with_all_fields(benchmark, store):
    rows = benchmark(lambda: [row.to_json() for row in store.find("studies", limit=25)])
    assert [row["0020000D"]["Value"] for row in rows] == [[uid] for uid in corpus.newest(STUDIES, 25)]


def test_one_look_up_in_the_index(benchmark, store):
    def get():
        with store.index.read() as snapshot:
            return snapshot.get(b"study_uids", ASKED.uid.encode())

    assert benchmark(get)
