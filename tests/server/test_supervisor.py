"""The supervisor's small rooms; whole servers of several processes are tried in e2e/test_workers.py."""

import asyncio
import socket

import pytest

from server.supervisor import bind

HOSTS = [("127.0.0.1", {socket.AF_INET}), ("::1", {socket.AF_INET6}), ("", {socket.AF_INET, socket.AF_INET6})]


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine knows no IPv6")
@pytest.mark.parametrize(("host", "families"), HOSTS)
def test_all_addresses_of_a_host_are_taken_and_none_is_listened_on(host: str, families: set[int]) -> None:
    """As one process does, so that --workers changes nobody who can connect; an address of IPv6 is not one of IPv4."""

    async def scenario() -> None:
        listening = await bind(host, 0)

        assert {one.family for one in listening.sockets} == families
        for one in listening.sockets:
            if one.family == socket.AF_INET6:
                assert one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            with socket.socket(one.family) as client, pytest.raises(ConnectionRefusedError):
                client.connect(one.getsockname()[:2])
        listening.close()

    asyncio.run(scenario())
