"""A Ray cluster of several nodes on this machine, on loopback alone; nodes and workers can be killed."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

QUIET = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
"""On Linux, the first makes Ray take 127.0.0.1 for its own address."""
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


class RayCluster:
    """A head without processors, and two nodes with one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]
        self.rng = random.Random(1)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def processes(self) -> list[Any]:
        import psutil

        return list(psutil.Process().children(recursive=True))

    def kill_worker(self, name: str) -> bool:
        """SIGKILL a random worker that runs a function of this name; whether there was one."""
        import psutil

        for process in self.rng.sample(every := self.processes(), len(every)):
            try:
                if process.cmdline()[:1] == [f"ray::{name}"]:
                    os.kill(process.pid, signal.SIGKILL)
                    return True
            except (psutil.Error, ProcessLookupError):
                continue
        return False

    def replace_node(self) -> None:
        """Kill a node with all that runs on it, and add another one."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(**NODE))


@contextmanager
def start_cluster() -> Iterator[RayCluster]:
    """The cluster, and RAY_ADDRESS for commands."""
    earlier = dict(os.environ)
    os.environ.update(QUIET)
    cluster = RayCluster()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.cluster.shutdown()
        os.environ.clear()
        os.environ.update(earlier)
