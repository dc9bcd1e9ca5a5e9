"""A trace shows the work of every thread, in the format of Chrome's trace events."""

from __future__ import annotations

import json
import threading

import pytest

from engine.errors import OutputError
from engine.live.trace import Tracer


def test_spans_instants_and_counters_come_with_their_threads(tmp_path):
    tracer, path = Tracer(), tmp_path / "trace.json"

    def work():
        with tracer.span("fast", frames=[7, 8]):
            tracer.counter("buffered", 3)

    thread = threading.Thread(target=work, name="inference_0")
    thread.start()
    thread.join()
    tracer.instant("new picture", frame=7)
    tracer.write(path)
    events = {event["name"]: event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] != "M"}
    span, counter, instant = events["fast"], events["buffered"], events["new picture"]
    assert span["ph"] == "X" and span["args"] == {"frames": [7, 8]} and span["dur"] >= 0
    assert counter["ph"] == "C" and counter["args"] == {"value": 3}
    assert span["ts"] <= counter["ts"] <= span["ts"] + span["dur"] <= instant["ts"] and instant["ph"] == "i"
    assert span["tid"] == counter["tid"] != instant["tid"]
    names = {e["tid"]: e["args"]["name"] for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "M"}
    assert names[span["tid"]] == "inference_0"


def test_a_trace_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match="--trace"):
        Tracer().write(tmp_path / "nowhere" / "trace.json")
