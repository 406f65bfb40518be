"""Addresses are taken before anything takes long, all that a host has."""

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, cast

import pytest

from server import addresses
from server.listening import Server
from server.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from server.backend import Backend

HOSTS = [("127.0.0.1", {socket.AF_INET}), ("::1", {socket.AF_INET6}), ("", {socket.AF_INET, socket.AF_INET6})]


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine knows no IPv6")
@pytest.mark.parametrize(("host", "families"), HOSTS)
def test_all_addresses_of_a_host_are_taken_and_none_is_listened_on(host: str, families: set[int]) -> None:
    """As one process does, so that --workers changes nobody who can connect; an address of IPv6 is not one of IPv4."""

    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in addresses.take(host, 0)]
        assert {one.family for one in listeners} == families
        for one in listeners:
            if one.family == socket.AF_INET6:
                assert one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            with socket.socket(one.family) as client, pytest.raises(ConnectionRefusedError):
                client.connect(one.getsockname()[:2])


@pytest.mark.parametrize(
    ("host", "says"),
    [("127.0.0.1", "already in use"), ("nowhere.invalid", "not known"), ("a..b", "label empty or too long")],
)
def test_address_that_is_not_to_be_had_is_told_in_one_sentence(host: str, says: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(SystemExit, match=rf"^vilt-serve: cannot listen on {host}:{port}: [a-z ]*{says}$"):
            addresses.take(host, port)


def test_addresses_are_written_as_urls() -> None:
    (one,) = addresses.take("127.0.0.1", 0)
    with one:
        assert addresses.urls([one]) == f"http://127.0.0.1:{one.getsockname()[1]}"


def test_of_two_that_took_a_port_the_second_to_listen_says_so() -> None:
    """Both could take it, for neither listened then; without a word a server would listen nowhere."""
    (ours,) = addresses.take("127.0.0.1", 0)
    server = Server(cast("ASGIApp", None), Settings(), cast("Backend", None))
    with ours, socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        theirs.bind(ours.getsockname())
        theirs.listen()

        with pytest.raises(SystemExit, match="address already in use"):
            asyncio.run(server.startup([ours]))
