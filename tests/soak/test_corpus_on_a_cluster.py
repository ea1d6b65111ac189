"""A corpus made on a Ray cluster is that of one process, byte for byte; a lost worker's block is done again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openbook.data.corpus.executor import Here
from openbook.data.corpus.run import build
from openbook.errors import DataError
from tests.data.corpus.dirt import recipe
from tests.data.corpus.test_corpus import contents

ray = pytest.importorskip("ray")
pytest.importorskip("ftfy")
pytest.importorskip("py3langid")
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from openbook.data.corpus.cluster import Ray

    yield Ray(cores=2)
    ray.shutdown()


def comparable(folder: Path) -> dict[str, bytes]:
    """What does not name the folder."""
    return {name: content for name, content in contents(folder).items() if name.startswith(("text", "shards", "tok"))}


def test_the_result_is_that_of_one_process(cluster: Any, tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    alone = comparable(build(wanted, executor=Here()))
    os.rename(tmp_path / "out", tmp_path / "alone")
    assert comparable(build(wanted, executor=cluster)) == alone


def die_once(job: tuple[Path, int]) -> int:
    """A task whose worker is killed the first time."""
    mark, number = job
    if number == 1 and not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_lost_worker_is_no_loss(cluster: Any, tmp_path: Path) -> None:
    jobs = [(tmp_path / "mark", number) for number in range(6)]
    assert sorted(result for _, result in cluster.map(die_once, jobs)) == list(range(6))
    assert (tmp_path / "mark").exists()


def fail(job: int) -> int:
    raise DataError(f"no text in {job}")


def test_an_error_arrives_as_it_is(cluster: Any) -> None:
    with pytest.raises(DataError, match="no text in 3"):
        list(cluster.map(fail, [3]))


def test_nothing_is_done_twice(cluster: Any, tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    build(wanted, executor=cluster)
    before = (tmp_path / "out" / "report.json").stat().st_mtime_ns
    build(wanted, executor=cluster)
    assert (tmp_path / "out" / "report.json").stat().st_mtime_ns == before
