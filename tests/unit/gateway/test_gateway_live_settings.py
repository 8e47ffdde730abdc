import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidInput, Malformed, Unsupported
from inference.gateway.live_settings import LiveSettings, Logs, Traces, changed_logs, changed_traces, parse


def test_settings_are_told_as_triton_tells_them() -> None:
    assert Logs().told() == {
        "log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
        "log_format": "default",
    }  # fmt: skip
    assert Traces().told() == {
        "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0",
        "trace_mode": "opentelemetry",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wanted",
    [{"log_info": 1}, {"log_verbose_level": True}, {"log_verbose_level": -1}, {"log_format": "x"}, {"nope": 1},
     {"log_error": "no"}, {"told": True}, {"nope": None}],
    ids=str,
)  # fmt: skip
def test_a_bad_log_setting_is_refused_by_name(wanted) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wanted))):
        changed_logs(Logs(), wanted)


@pytest.mark.parametrize(
    "wanted",
    [{"trace_rate": "x"}, {"trace_rate": "0"}, {"trace_count": "-2"}, {"trace_rate": str(2**31)}, {"nope": 1},
     {"trace_level": ["MOST"]}, {"trace_level": []}, {"trace_rate": 1.5}, {"log_frequency": True}, {"trace_mode": "x"},
     {"trace_rate": "1" * 100}, {"trace_rate": "²"}],
    ids=str,
)  # fmt: skip
def test_a_bad_trace_setting_is_refused_by_name(wanted) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wanted))):
        changed_traces(Traces(), wanted, Traces())


def test_nobody_chooses_a_file_over_the_network() -> None:
    with pytest.raises(Unsupported, match="log file location can not be updated through network protocol"):
        changed_logs(Logs(), {"log_file": "/etc/cron.d/x"})
    with pytest.raises(Unsupported, match="trace file location can not be updated"):
        changed_traces(Traces(), {"trace_file": "x"}, Traces())
    with pytest.raises(InvalidInput, match="only one trace level 'OFF'"):
        changed_traces(Traces(), {"trace_level": ["OFF", "TIMESTAMPS"]}, Traces())


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", b'{"a":' * 2000], ids=["list", "cut", "bytes", "deep"])
def test_what_is_no_object_is_malformed(data) -> None:
    with pytest.raises(Malformed):
        parse(data)
    assert parse(b"") == {}


def test_log_settings_are_in_force_at_once() -> None:
    settings = LiveSettings()
    logger = logging.getLogger("inference")
    before = logger.level
    try:
        settings.set_logs({"log_verbose_level": 1, "log_info": False})
        assert logger.level == logging.DEBUG
        record = logging.LogRecord("inference", logging.INFO, "", 0, "", (), None)
        assert not settings.allows(record)
        record.levelno = logging.WARNING
        assert settings.allows(record)
        record.levelno = logging.DEBUG
        assert settings.allows(record)
        with pytest.raises(InvalidInput):
            settings.set_logs({"log_info": True, "nope": 1})
        assert not settings.logs.log_info
        settings.set_logs({"log_verbose_level": 0, "log_info": True})
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)


@given(st.integers(1, 20), st.integers(-1, 20), st.integers(0, 200))
def test_every_so_many_is_traced_and_no_more_than_wanted(rate, count, requests) -> None:
    settings = LiveSettings()
    settings.set_traces({"trace_level": ["TIMESTAMPS"], "trace_rate": str(rate), "trace_count": str(count)})
    found = sum(settings.samples("m") for _ in range(requests))
    assert found == (requests // rate if count < 0 else min(count, requests // rate))


def test_a_models_own_settings_win_until_they_are_cleared() -> None:
    settings = LiveSettings()
    assert not settings.is_tracing
    settings.set_traces({"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": 1}, "m")
    assert settings.is_tracing
    assert settings.samples("m")
    assert not settings.samples("other")
    settings.set_traces({"trace_rate": "7"})
    assert settings.traces("other").rate == 7
    assert settings.traces("m").rate == 1
    settings.set_traces({"trace_rate": None}, "m")
    assert settings.traces("m").rate == 7
    settings.set_traces({"trace_level": None}, "m")
    assert settings.traces("m") == settings.traces()
    assert not settings.is_tracing
    settings.set_traces({"trace_level": "TIMESTAMPS"}, "m")
    settings.keep(lambda name: name != "m")
    assert settings.traces("m").levels == ()
