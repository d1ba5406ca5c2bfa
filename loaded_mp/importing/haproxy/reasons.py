"""Words of HAProxy: which have a value, and why they are not carried over, or what to do in their place."""

OWN = "it is about HAProxy's own connections, and here are none: packets pass"
CONTENT = "what is in the packets is not looked at"
_LOG = "packets are not logged one by one; 'loaded-mp flows' and 'status' show who is served"
_FILTER = "loaded-mp is no firewall: say it in nftables or iptables"
_EVENTS = "'loaded-mp events --follow' and the log say it"
_SEEN = "backends see the client's own address"
_NO_NAMES = "addresses are not looked up by name"
_COMMAND = 'have a check of type command, with run = ["PROGRAM", "{address}"]'
_CONNECTED = "a connection is enough here; a check of type command can say more"

#: Sections.
SECTIONS = {
    "global": "this is about HAProxy's process",
    "peers": "flows are not shared with another balancer",
    "resolvers": _NO_NAMES,
    "mailers": _EVENTS,
}

#: Lines, by their first word, or their first two.
REASONS = {
    **dict.fromkeys(("log", "log-format", "log-format-sd", "log-tag", "error-log-format"), _LOG),
    **dict.fromkeys(("option tcplog", "option httplog", "option dontlognull", "option logasap"), _LOG),
    **dict.fromkeys(("option dontlog-normal", "option log-separate-errors"), _LOG),
    **dict.fromkeys(("option tcpka", "option clitcpka", "option srvtcpka", "option redispatch"), OWN),
    **dict.fromkeys(("option splice-auto", "option splice-request", "option splice-response"), OWN),
    **dict.fromkeys(("option tcp-smart-accept", "option tcp-smart-connect", "option nolinger"), OWN),
    **dict.fromkeys(("option independent-streams", "option abortonclose", "option contstats"), OWN),
    **dict.fromkeys(
        ("option socket-stats", "retries", "maxconn", "fullconn", "backlog", "timeout queue"), OWN
    ),
    **dict.fromkeys(("timeout tarpit", "timeout http-request", "timeout http-keep-alive", "cookie"), CONTENT),
    **dict.fromkeys(("http-request", "http-response", "errorfile", "option forwardfor", "filter"), CONTENT),
    **dict.fromkeys(("acl", "tcp-request", "tcp-response", "rate-limit"), _FILTER),
    **dict.fromkeys(("source", "option transparent"), _SEEN),
    **dict.fromkeys(("option external-check", "external-check"), _COMMAND),
    **dict.fromkeys(("option mysql-check", "option pgsql-check", "option ldap-check"), _CONNECTED),
    **dict.fromkeys(("option log-health-checks", "email-alert"), _EVENTS),
    "stats": "'loaded-mp status', 'top' and /metrics show it",
    "use_backend": "a service has one set of backends: have a service for each, on VIPs or ports of its own",
    "use-server": "the scheduler chooses; 'loaded-mp move' moves one client",
    "server-template": f"{_NO_NAMES}: have a backend for each",
    "dispatch": "write it as a server",
}

#: Words of a `stick-table` that have a value.
TABLE_VALUES = {"type", "size", "expire", "peers", "store", "srvkey", "write-to"}
TABLE_REASONS = {
    "size": "the flow table has a size of its own: flows",
    "peers": "flows are not shared with another balancer",
}

#: Words behind the address of a `bind` that have a value.
BIND_VALUES = {
    "name", "interface", "maxconn", "backlog", "mss", "nice", "id", "process", "thread", "shards",
    "namespace", "tcp-ut", "proto", "alpn", "crt", "ca-file", "ciphers", "ciphersuites", "curves",
    "ecdhe", "verify", "npn", "ssl-min-ver", "ssl-max-ver", "crt-list", "gid", "group", "uid", "user",
    "mode", "level", "accept-netscaler-cip",
}  # fmt: skip
BIND_REASONS = {
    "accept-proxy": "backends get what clients send: let them send no PROXY header, or backends read it",
    "interface": "the VIP says where packets come in",
    "transparent": "a VIP need not be an address of this machine",
}

#: Words behind the address of a `server` that have a value.
SERVER_VALUES = {
    "weight", "port", "addr", "inter", "fastinter", "downinter", "rise", "fall", "maxconn", "minconn",
    "maxqueue", "slowstart", "cookie", "id", "observe", "error-limit", "on-error", "on-marked-down",
    "on-marked-up", "source", "usesrc", "agent-send", "agent-inter", "agent-addr", "agent-port",
    "check-sni", "check-alpn", "check-proto", "verify", "verifyhost", "ca-file", "crt", "crl-file",
    "ciphers", "ciphersuites", "alpn", "npn", "sni", "socks4", "track", "resolvers", "resolve-prefer",
    "resolve-opts", "resolve-net", "init-addr", "init-state", "namespace", "proto", "tcp-ut", "redir",
    "ssl-min-ver", "ssl-max-ver", "proxy-v2-options", "pool-low-conn", "pool-max-conn",
    "pool-purge-delay", "max-reuse", "log-proto", "shard", "ws", "guid",
}  # fmt: skip
SERVER_REASONS = {
    **dict.fromkeys(
        ("send-proxy", "send-proxy-v2", "check-send-proxy"), f"{_SEEN}: no PROXY header is needed"
    ),
    **dict.fromkeys(("source", "usesrc"), _SEEN),
    **dict.fromkeys(("resolvers", "init-addr"), _NO_NAMES),
    **dict.fromkeys(("socks4", "check-via-socks4"), "packets go to backends by routes alone"),
    **dict.fromkeys(("observe", "error-limit", "on-error"), "[service.observe] goes by what packets say"),
    "downinter": "a backend that is down is asked every interval_s",
    "minconn": "most_flows is the same however many clients there are",
    "maxqueue": "nobody waits in a queue",
    "cookie": CONTENT,
    "on-marked-up": "a backup's flows stay with it",
    "track": "have the same check here, which asks once more",
    "non-stick": "affinity holds for all backends",
    "id": "names are enough",
    "sni": "TLS passes as it is",
}
