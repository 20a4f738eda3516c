"""Threads: one for small models, unless the user has said; what is independent side by side on what is left."""

import threading

import pytest
import torch

from objtune_cli.runtime import cpu


@pytest.fixture
def four(monkeypatch):
    """A machine of four processors whose user has said nothing."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu, "_default_threads", lambda: 4)
    yield
    torch.set_num_threads(before)


def test_small_models_take_one_thread_and_large_ones_all(four):
    cpu.set_threads_for(cpu.SMALL_MODEL_PARAMETERS - 1)
    assert torch.get_num_threads() == 1 and cpu.worker_count(8) == 4 and cpu.worker_count(3) == 3
    cpu.set_threads_for(cpu.SMALL_MODEL_PARAMETERS)
    assert torch.get_num_threads() == 4 and cpu.worker_count(8) == 1


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_said_holds(four, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    torch.set_num_threads(2)
    cpu.set_threads_for(1)
    assert torch.get_num_threads() == 2 and cpu.worker_count(8) == 1


def test_work_is_done_at_the_same_time_and_answers_keep_their_order(four):
    cpu.set_threads_for(1)
    met = threading.Barrier(3, timeout=20)  # three must wait for each other: one after the other would never meet
    assert cpu.run_parallel([lambda i=i: (met.wait() >= 0, i) for i in range(3)]) == [(True, i) for i in range(3)]
    assert cpu.run_parallel([]) == []


def test_an_error_is_raised_after_all_have_ended(four):
    cpu.set_threads_for(1)
    done = []

    def wrong():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cpu.run_parallel([wrong, lambda: done.append(1), lambda: done.append(2)])
    assert sorted(done) == [1, 2]


def test_threads_of_lanes_have_one_thread_each(four):
    cpu.set_threads_for(1)
    assert cpu.run_parallel([torch.get_num_threads] * 3) == [1, 1, 1]


def test_all_threads_are_those_from_before_a_small_model_took_one(four, monkeypatch):
    """Nothing is replaced but what torch was told: whichever comes first, a small model or work for lanes."""
    monkeypatch.undo()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for first in (lambda: cpu.set_threads_for(1), lambda: cpu.run_parallel([int, int])):
        torch.set_num_threads(2)
        cpu._default_threads.cache_clear()
        first()
        assert torch.get_num_threads() == 1 and cpu.worker_count(8) == 2
    cpu._default_threads.cache_clear()
