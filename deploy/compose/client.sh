#!/bin/sh
# Asks both VIPs again and again, from several addresses, and prints how often each backend answered.
set -eu
ip route replace "$VIP4" via "$GATEWAY4"
ip -6 route replace "$VIP6" via "$GATEWAY6"
for number in $(seq 1 "$ADDRESSES"); do
    ip address add "$NET4$((100 + number))/24" dev eth0
    ip address add "$NET6$((100 + number))/64" dev eth0 nodad
done
while sleep 1; do
    for number in $(seq 1 "$ADDRESSES"); do
        curl -s -m 2 --interface "$NET4$((100 + number))" "http://$VIP4/" || echo failed
        curl -s -m 2 --interface "$NET6$((100 + number))" "http://[$VIP6]/" || echo failed
    done | sort | uniq -c | tr '\n' ' '
    echo
done
