"""Progress of work that is done side by side: one stage is shown at a time, notes are whole lines, every step is an event."""

import json
import threading

from objtune_cli.cli.progress import ConsoleProgress
from objtune_cli.workflow.metric_loggers import JsonLinesLogger
from objtune_cli.workflow.reporting import CommandReporter


def test_of_two_threads_the_one_that_began_first_is_shown(capfd, tmp_path):
    report = CommandReporter(ConsoleProgress(), JsonLinesLogger(tmp_path / "events", "train"))
    met, order = threading.Barrier(2, timeout=20), []

    def work(stage: str, first: bool) -> None:
        for i in range(1, 5):
            for turn in (True, False):  # strictly in turn
                if turn is first:
                    report.step(stage, i, 4)
                    order.append(stage)
                met.wait()
        report.note(f"{stage} has ended")

    both = [threading.Thread(target=work, args=("one", True)), threading.Thread(target=work, args=("two", False))]
    for each in both:
        each.start()
    for each in both:
        each.join()
    report.step("after", 1, 1)
    said = capfd.readouterr().err.splitlines()
    assert order == ["one", "two"] * 4
    assert [line.split("  ")[0] for line in said[:5]] == [
        "one 1/4",
        "one 2/4",
        "one 3/4",
        "one 4/4",
        "two 4/4",
    ]  # the first has ended by then
    assert sorted(said[5:7]) == ["one has ended", "two has ended"] and said[7] == "after 1/1"
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in events if e["event"] == "step"] == [
        (s, i) for i in range(1, 5) for s in ("one", "two")
    ] + [("after", 1)]
