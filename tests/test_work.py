"""Work that is kept: made once, by as many processes as there are cores to share."""

import multiprocessing
import os
import pickle
import time

import pytest
import torch

from l2l_kit.errors import UnknownNameError, look_up
from l2l_kit.making.work import cores, default_jobs, digest, kept, parallel_map


@pytest.fixture
def one_core():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to cores")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_only_the_cores_that_the_process_may_use_are_counted(one_core, monkeypatch):
    monkeypatch.delenv("L2L_JOBS", raising=False)
    assert cores() == default_jobs() == 1


def threads():
    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize(("asked", "found"), [("", 1), ("2", min(2, os.cpu_count()))])
def test_workers_share_one_core_unless_the_user_says_how_many_threads(one_core, monkeypatch, asked, found):
    """And so do the processes that they start, such as kernels."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert parallel_map(threads, [(), ()], jobs=2) == [(found, asked or "1")] * 2


def test_an_error_of_a_worker_comes_as_it_is():
    error = UnknownNameError("fruit", "appel", ["apple", "pear"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(UnknownNameError, match="Did you mean 'apple'"):
        parallel_map(look_up, [("fruit", "appel", {"apple": 1})], 1, apart=True)


def test_of_many_names_an_error_lists_the_nearest():
    error = UnknownNameError("fruit", "appel", [f"fruit {number}" for number in range(30)] + ["apple"])
    assert "Did you mean 'apple'? Known: 'apple', 'fruit" in str(error)
    assert str(error).endswith("and 23 others.")


def test_a_digest_is_of_weights_of_any_type():
    one, other = (digest({}, [torch.tensor([number], dtype=torch.bfloat16)]) for number in (1, 2))
    assert one != other


@pytest.mark.usefixtures("forked_workers")
def test_results_come_in_the_order_of_the_calls():
    told = []
    for jobs in (1, 2):
        assert parallel_map(pow, [(2, 1), (2, 2), (2, 3)], jobs, told.append) == [2, 4, 8]
        assert parallel_map(pow, [(2, power) for power in range(9)], jobs, shared=True) == [2**n for n in range(9)]
    assert (told[:3], sorted(told[3:])) == ([2, 4, 8], [2, 4, 8])
    assert parallel_map(pow, [], 2, apart=True) == []


def test_the_number_of_jobs_is_said_by_the_environment(monkeypatch):
    monkeypatch.setenv("L2L_JOBS", "3")
    assert default_jobs() == 3
    for wrong in ("two", "0", "-1", "1.5"):
        monkeypatch.setenv("L2L_JOBS", wrong)
        with pytest.raises(ValueError, match=f"L2L_JOBS .* at least 1, got '{wrong}'"):
            default_jobs()


def touch(path):
    time.sleep(0.1)
    path.touch()


@pytest.mark.usefixtures("forked_workers")
def test_after_an_interruption_nothing_more_is_begun(tmp_path):
    work = [(None,), *((tmp_path / str(number),) for number in range(20))]
    with pytest.raises(AttributeError):
        parallel_map(touch, work, jobs=2)
    assert len(list(tmp_path.iterdir())) < 20


def make(folder, log):
    def slowly():
        time.sleep(0.5)
        with log.open("a") as file:
            file.write("made\n")
        return {"x": torch.ones(2)}

    assert kept(folder, {"a": 1}, slowly)[0]["x"].tolist() == [1, 1]


def test_what_two_processes_want_is_made_by_one_while_the_other_waits(tmp_path):
    spawn = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    both = [spawn.Process(target=make, args=(tmp_path / "deep", tmp_path / "log")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
