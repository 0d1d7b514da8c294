#!/bin/sh
# Two RDMA devices on the ends of a veth pair: rxe0 is 10.77.0.1 on veth0, rxe1 is 10.77.0.2 on
# veth1. Run it again after a link came up: the kernel forgets the routes of one that goes down.
#
# Both ends are in one network namespace, because soft-RoCE serves no other. So rules send packets
# between the two addresses over the pair, which would go over lo.
set -e
if ! [ -e /sys/class/net/veth0 ]; then
    ip link add veth0 mtu 9000 address 02:77:00:00:00:01 type veth \
        peer name veth1 mtu 9000 address 02:77:00:00:00:02
    for interface in all veth0 veth1; do
        echo 0 >/proc/sys/net/ipv4/conf/$interface/rp_filter
        echo 1 >/proc/sys/net/ipv4/conf/$interface/accept_local
        # Link-local addresses are valid at once: UCX uses them.
        echo 0 >/proc/sys/net/ipv6/conf/$interface/accept_dad
    done
    ip address add 10.77.0.1/24 dev veth0
    ip address add 10.77.0.2/24 dev veth1
    # Behind the two rules below.
    ip rule add pref 10 lookup local
    ip rule add pref 1 iif lo from 10.77.0.1 to 10.77.0.2 lookup 101
    ip rule add pref 1 iif lo from 10.77.0.2 to 10.77.0.1 lookup 102
    ip rule del pref 0
    # While a link is down nothing arrives, by lo neither.
    ip route add unreachable default metric 1000 table 101
    ip route add unreachable default metric 1000 table 102
    ip link set veth0 up
    ip link set veth1 up
    rdma link add rxe0 type rxe netdev veth0
    rdma link add rxe1 type rxe netdev veth1
fi
# Who connects to one address comes from the other one: so TCP crosses the pair, too.
ip route replace local 10.77.0.1 dev veth0 table local proto kernel scope host src 10.77.0.2
ip route replace local 10.77.0.2 dev veth1 table local proto kernel scope host src 10.77.0.1
ip route replace 10.77.0.2/32 dev veth0 src 10.77.0.1 table 101
ip route replace 10.77.0.1/32 dev veth1 src 10.77.0.2 table 102
ip neighbour replace 10.77.0.2 lladdr 02:77:00:00:00:02 dev veth0 nud permanent
ip neighbour replace 10.77.0.1 lladdr 02:77:00:00:00:01 dev veth1 nud permanent
