"""Addresses are taken before anything takes long, all that a host has."""

import contextlib
import socket

import pytest

from server import addresses

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


@pytest.mark.parametrize(("host", "says"), [("127.0.0.1", "already in use"), ("nowhere.invalid", "not known")])
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
