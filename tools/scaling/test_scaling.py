"""Tests of the simulation, against formulas and against what must hold in any order.

    python3 -m unittest discover -s tools/scaling
"""

import os
import subprocess
import sys
import unittest
from math import factorial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from order import Fair
from report import percentile
from simulation import Affinity, Simulation, placement
from workload import MODEL_SHARES, PROFILES, Job, Profile, arrivals

PROGRAM = Path(__file__).parent / "simulate.py"
CARD = PROFILES["card"]
# One size of one second.
ONE = Profile("", (1.0, 1.0, 1.0), ("", "", ""), (1.0, 0.0, 0.0))


def exponential(chance, cost_s):
    """Service times of the M/M queues."""
    return chance.expovariate(1 / cost_s)


def simulated(
    profile, workers, load, count, *, order="fair", affinity=Affinity.PATIENT, models=1, loading_s=120.0, **kinds
):
    """A run, with its jobs."""
    jobs = arrivals(profile, workers, load, count, 1, models, **kinds)
    return Simulation(jobs, placement(workers, MODEL_SHARES[models]), models, order, affinity, loading_s).run()


def mean_wait(outcome):
    """Seconds waited on average."""
    return sum(job.waited_s for job in outcome.jobs) / len(outcome.jobs)


def erlang_c(workers, load):
    """The share of the jobs that wait in M/M/c."""
    offered = workers * load
    full = offered**workers / factorial(workers) / (1 - load)
    return full / (sum(offered**n / factorial(n) for n in range(workers)) + full)


class Formulas(unittest.TestCase):
    def test_one_worker_waits_as_m_m_1(self):
        outcome = simulated(ONE, 1, 0.7, 100_000, order="fcfs", work_s=exponential)

        self.assertAlmostEqual(mean_wait(outcome), 0.7 / 0.3, delta=0.05 * 0.7 / 0.3)

    def test_one_worker_with_constant_times_waits_half_as_long(self):
        outcome = simulated(ONE, 1, 0.7, 60_000, order="fcfs")

        self.assertAlmostEqual(mean_wait(outcome), 0.7 / 0.3 / 2, delta=0.05 * 0.7 / 0.3 / 2)

    def test_many_workers_wait_as_m_m_c(self):
        for workers, load in ((2, 0.7), (8, 0.9)):
            with self.subTest(workers=workers, load=load):
                outcome = simulated(ONE, workers, load, 150_000, order="fcfs", work_s=exponential)

                waiting = sum(job.waited_s > 0 for job in outcome.jobs) / len(outcome.jobs)
                expected = erlang_c(workers, load)
                self.assertAlmostEqual(waiting, expected, delta=0.03 * expected)
                expected_s = expected / (workers * (1 - load))
                self.assertAlmostEqual(mean_wait(outcome), expected_s, delta=0.08 * expected_s)

    def test_work_done_while_others_wait_is_the_same_in_any_order(self):
        # Kleinrock's conservation law: one worker that never rests while somebody waits. The sum of
        # work times wait is what is left to do, over time, less what runs; no order changes that.
        sums = []
        for order in ("fcfs", "fair"):
            outcome = simulated(CARD, 1, 0.95, 20_000, order=order, clients="unequal")
            sums.append(sum(job.work_s * job.waited_s for job in outcome.jobs))

        self.assertAlmostEqual(sums[0] / sums[1], 1, places=9)

    def test_workers_are_as_busy_as_was_asked_for(self):
        outcome = simulated(CARD, 8, 0.7, 30_000)

        self.assertAlmostEqual(outcome.working_s / (8 * outcome.ended_s), 0.7, delta=0.02)


class Conservation(unittest.TestCase):
    def test_each_job_is_made_once_and_a_worker_makes_one_at_a_time(self):
        for affinity in Affinity:
            for order in ("fair", "fcfs"):
                with self.subTest(affinity=affinity, order=order):
                    kinds = {"order": order, "affinity": affinity, "models": 4, "clients": "unequal"}
                    outcome = simulated(CARD, 8, 0.6, 3_000, loading_s=5.0, **kinds)

                    self.check(outcome)

    def check(self, outcome):
        self.assertFalse(outcome.grew)
        self.assertEqual({job.times_made for job in outcome.jobs}, {1})
        by_worker = {}
        for job in outcome.jobs:
            self.assertLessEqual(job.arrived_s, job.taken_s)
            self.assertAlmostEqual(job.ended_s, job.began_s + job.work_s)
            by_worker.setdefault(job.worker, []).append(job)
        for jobs in by_worker.values():
            jobs.sort(key=lambda job: job.taken_s)
            for before, after in zip(jobs, jobs[1:], strict=False):
                self.assertLessEqual(before.ended_s, after.taken_s)
        self.assertAlmostEqual(outcome.working_s, sum(job.work_s for job in outcome.jobs), places=3)
        loading_s = sum(job.began_s - job.taken_s for job in outcome.jobs)
        self.assertAlmostEqual(outcome.loading_s, loading_s, places=3)

    def test_nobody_rests_while_there_is_work_that_he_may_do(self):
        outcome = simulated(CARD, 8, 0.95, 5_000)

        # Of one model: whoever waited was taken in the moment in which another job ended.
        ends = {job.ended_s for job in outcome.jobs}
        waited = [job for job in outcome.jobs if job.waited_s > 0]
        self.assertGreater(len(waited), 1_000)
        self.assertTrue(all(job.taken_s in ends for job in waited))


class Affinities(unittest.TestCase):
    def test_a_job_goes_to_a_worker_that_has_its_model(self):
        for affinity in (Affinity.WARM_FIRST, Affinity.PATIENT, Affinity.PINNED):
            job = Job(0, 0.0, 0, 0, 1, 1.0, 1.0)

            outcome = Simulation([job], [0, 0, 1], 2, "fair", affinity).run()

            self.assertEqual((job.worker, job.waited_s, outcome.loads), (2, 0.0, 0), affinity)

    def test_blind_workers_load_what_another_has(self):
        job = Job(0, 0.0, 0, 0, 1, 1.0, 1.0)

        outcome = Simulation([job], [0, 0, 1], 2, "fair", Affinity.BLIND, 100.0).run()

        self.assertEqual((job.worker, job.waited_s, outcome.loads), (0, 100.0, 1))

    def test_a_patient_job_waits_for_a_short_line_and_not_for_a_long_one(self):
        for length, waits_for_loading in ((3, False), (30, True)):
            jobs = [Job(number, 0.0, 0, 0, 1, 10.0, 10.0) for number in range(length)]

            outcome = Simulation(jobs, [0, 1], 2, "fair", Affinity.PATIENT, 100.0).run()

            self.assertEqual(outcome.loads > 0, waits_for_loading, length)

    def test_patience_may_be_longer_than_loading_takes(self):
        for patience_s, loads in ((0.0, True), (1_000.0, False)):
            jobs = [Job(number, 0.0, 0, 0, 1, 10.0, 10.0) for number in range(30)]

            outcome = Simulation(jobs, [0, 1], 2, "fair", Affinity.PATIENT, 100.0, patience_s).run()

            self.assertEqual(outcome.loads > 0, loads)

    def test_a_model_that_nobody_has_is_loaded(self):
        job = Job(0, 0.0, 0, 0, 1, 1.0, 1.0)

        Simulation([job], [0, 0], 2, "fair", Affinity.PATIENT, 100.0).run()

        self.assertEqual(job.waited_s, 100.0)

    def test_workers_that_are_pinned_load_nothing(self):
        outcome = simulated(CARD, 8, 0.5, 2_000, affinity=Affinity.PINNED, models=4)

        self.assertEqual(outcome.loads, 0)

    def test_more_work_than_can_be_made_is_seen(self):
        self.assertTrue(simulated(CARD, 1, 1.3, 20_000).grew)

    def test_models_are_placed_by_their_shares_and_each_somewhere(self):
        self.assertEqual(placement(8, MODEL_SHARES[4]), [0, 0, 0, 0, 1, 1, 2, 3])
        self.assertEqual(placement(1, MODEL_SHARES[4]), [0])
        self.assertEqual(len(placement(512, MODEL_SHARES[4])), 512)


class Device:
    """One worker and the order, as in the tests of src/service/order.rs."""

    def __init__(self):
        self.order, self.count, self.names = Fair(), 0, {}

    def come(self, name, client, cost_s, model=0):
        job = Job(self.count, 0.0, client, cost_s, model, cost_s, cost_s)
        self.count += 1
        self.names[job.number] = name
        self.order.join(job)

    def serve(self, extra_s=None):
        job = self.order.next(extra_s or {0: 0.0})
        self.order.begin(job)
        self.order.end(job)
        return self.names[job.number]


class Order(unittest.TestCase):
    """What the server's order does, the same here: its own tests, made anew."""

    def test_small_before_big(self):
        for client in (1, 2):
            device = Device()
            device.come("big", 1, 100.0)
            device.come("small", client, 1.0)
            self.assertEqual(device.serve(), "small")

    def test_equal_sizes_keep_their_order(self):
        device = Device()
        for name, client in (("a", 1), ("b", 2), ("c", 3), ("d", 1)):
            device.come(name, client, 5.0)
        self.assertEqual([device.serve() for _ in range(4)], ["a", "b", "c", "d"])

    def test_a_big_job_is_passed_by_no_more_than_the_bound(self):
        for clients, a_round in ((1, 1), (1, 20), (2, 1), (2, 20), (3, 1)):
            with self.subTest(clients=clients, a_round=a_round):
                device, passed_s = Device(), 0
                device.come("big", 0, 100.0)
                while True:
                    for client in range(clients):
                        for _ in range(a_round):
                            device.come("small", client, 1.0)
                    if device.serve() == "big":
                        break
                    passed_s += 1
                    self.assertLessEqual(passed_s, 100 + 200 * (clients - 1) + 1)
                self.assertGreaterEqual(passed_s, 50)

    def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(self):
        device = Device()
        for _ in range(10):
            device.come("many", 1, 10.0)
        device.serve()
        device.serve()
        device.come("one", 2, 10.0)
        self.assertLessEqual([device.serve() for _ in range(9)].index("one"), 1)

    def test_two_who_ask_for_much_take_turns(self):
        device = Device()
        for name, client in (("a", 1), ("b", 2)):
            for _ in range(4):
                device.come(name, client, 10.0)
        self.assertEqual([device.serve() for _ in range(8)], ["a", "b"] * 4)

    def test_many_small_ones_do_not_outdo_a_big_one_of_another(self):
        device = Device()
        for _ in range(100):
            device.come("small", 1, 1.0)
        device.come("big", 2, 10.0)
        self.assertTrue(5 <= [device.serve() for _ in range(101)].index("big") <= 20)

    def test_who_must_load_lets_others_go_first_for_as_long(self):
        for loading_s, first in ((0.0, "cold"), (30.0, "warm")):
            device = Device()
            device.come("cold", 1, 5.0, model=0)
            device.come("warm", 2, 5.0, model=1)
            self.assertEqual(device.serve({0: loading_s, 1: 0.0}), first)


class Report(unittest.TestCase):
    def test_percentiles(self):
        hundred = list(range(1, 101))
        self.assertEqual([percentile(hundred, share) for share in (0.5, 0.95, 0.99)], [50, 95, 99])
        self.assertEqual(percentile([7], 0.99), 7)

    def test_the_same_seed_prints_the_same_and_another_does_not(self):
        def printed(seed, hashes):
            command = [sys.executable, PROGRAM, "--jobs=300", "--workers=1,8", "--seeds=1", f"--seed={seed}"]
            environment = {**os.environ, "PYTHONHASHSEED": hashes}
            command += ["--only=order", "--only=clients", "--only=affinity"]
            return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

        self.assertEqual(printed(1, "1"), printed(1, "2"))
        self.assertNotEqual(printed(1, "1"), printed(2, "1"))


if __name__ == "__main__":
    unittest.main()
