"""Ranks talk by the interface that leads to the first machine, and do not wait for each other for ever."""

from __future__ import annotations

import os
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.engine import zero
from bigssl.engine.meeting import network
from bigssl.engine.meeting.network import MEETING, choose_interfaces, interface_to, seconds_of

APART = {"WORLD_SIZE": "2", "LOCAL_SIZE": "1"}
TOGETHER = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2"}


def chosen(backend: str, **variables: str) -> dict[str, str]:
    """The interfaces that a rank with these variables talks by."""
    environment = dict(variables)
    choose_interfaces(backend, environment)
    return {name: value for name, value in environment.items() if name.endswith("IFNAME")}


def test_the_way_to_this_machine_is_its_own() -> None:
    assert interface_to("127.0.0.1") == interface_to("localhost") == ("lo", "127.0.0.1")


def test_within_a_machine_gloo_takes_its_own_interface_and_nccl_its_own_ways() -> None:
    assert chosen("nccl", MASTER_ADDR="127.0.0.1", **TOGETHER) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert chosen("gloo") == {"GLOO_SOCKET_IFNAME": "lo"}


def test_between_machines_both_take_the_one_that_leads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "interface_to", lambda address: ("eth7", "10.9.0.2"))
    both = {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "eth7"}
    assert chosen("nccl", MASTER_ADDR="10.9.0.1", **APART) == both
    assert chosen("gloo", MASTER_ADDR="10.9.0.1", **APART) == {"GLOO_SOCKET_IFNAME": "eth7"}


def test_what_the_user_has_set_stays() -> None:
    """Also where it is set for every backend and MASTER_ADDR could not be used by itself."""
    mine = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib1"}
    assert chosen("nccl", MASTER_ADDR="127.0.0.1", **mine, **APART) == mine
    gloo = {"GLOO_SOCKET_IFNAME": "ib0"}
    assert chosen("nccl", MASTER_ADDR="127.0.0.1", **gloo, **TOGETHER) == gloo


@pytest.mark.parametrize("local", ["LOCAL_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_first_machine_that_others_cannot_reach_is_refused(local: str) -> None:
    with pytest.raises(distributed.NoMeeting) as caught:
        chosen("nccl", MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", **{local: "1"})
    said = str(caught.value)
    assert said.startswith("MASTER_ADDR: value '127.0.0.1' is 127.0.0.1 on ") and "allowed: its address in" in said
    assert "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME on every machine" in said


@pytest.mark.parametrize("cards", [{"eth5": "10.9.0.1"}, {"eth5": "10.9.0.1", "docker0": "172.17.0.1"}])
def test_a_first_machine_that_calls_itself_loopback_takes_its_way_out(
    cards: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Debian's /etc/hosts: the others know the name's address in the network. Of several, the default route."""
    ways = {"first": ("lo", "127.0.1.1"), "192.0.2.1": ("eth5", "10.9.0.1")}
    numbers = {name: [SimpleNamespace(family=socket.AF_INET, address=card)] for name, card in cards.items()}
    monkeypatch.setattr(network, "interface_to", ways.__getitem__)
    monkeypatch.setattr(network.psutil, "net_if_addrs", lambda: {"lo": [], **numbers})
    both = {"GLOO_SOCKET_IFNAME": "eth5", "NCCL_SOCKET_IFNAME": "eth5"}
    assert chosen("nccl", MASTER_ADDR="first", RANK="0", **APART) == both
    with pytest.raises(distributed.NoMeeting, match="'first' is 127.0.1.1 on .*, which other machines cannot reach"):
        chosen("nccl", MASTER_ADDR="first", RANK="1", **APART)  # the second machine would wait for itself


def test_a_first_machine_that_has_no_number_is_refused() -> None:
    with pytest.raises(distributed.NoMeeting) as caught:
        chosen("gloo", MASTER_ADDR="nowhere.invalid", **APART)
    assert str(caught.value).startswith("MASTER_ADDR: value 'nowhere.invalid': ")
    assert "`hostname -I` on it lists them" in str(caught.value)


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan", "10s"])
def test_seconds_that_are_none_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEETING, value)
    with pytest.raises(ConfigError, match=f"BIGSSL_MEETING: value '{value}'; allowed: a number of seconds"):
        seconds_of(MEETING, 5)


def test_seconds_may_be_set_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEETING, raising=False)
    assert seconds_of(MEETING, 600) == 600
    for text, value in (("", 600), ("0", 0), ("2.5", 2.5)):
        monkeypatch.setenv(MEETING, text)
        assert seconds_of(MEETING, 600) == value


def alone() -> tuple[str, float, str]:
    os.environ.update({"WORLD_SIZE": "2", MEETING: "3"})
    begin = time.monotonic()
    try:
        zero.start()
    except distributed.NoMeeting as error:
        return str(error), time.monotonic() - begin, os.environ["MASTER_PORT"]
    raise AssertionError("met nobody")


def test_a_rank_whose_others_do_not_come_says_where_it_waited(ranks: Any) -> None:
    ((said, seconds, port),) = ranks(alone, 1, timeout=60)
    assert 2.5 < seconds < 15, seconds
    assert said.startswith("rank 0 on ") and "cannot meet the other ranks" in said
    assert f"at 127.0.0.1:{port} (--master_addr, --master_port)" in said
    assert "by the network interface of GLOO_SOCKET_IFNAME (lo): " in said


def late() -> bool:
    os.environ[MEETING] = "2"
    zero.start()
    time.sleep(4 * distributed.rank())
    distributed.barrier()
    return True


def test_those_who_have_met_wait_longer_for_each_other(ranks: Any) -> None:
    assert ranks(late, 2, timeout=60) == [True, True]
