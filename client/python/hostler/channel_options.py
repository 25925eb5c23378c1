"""How a gRPC channel finds its peer again, and notices that it is dead: one answer for the SDK and the daemons."""

CONNECT_MS = 3_000
"""How long one attempt to connect may take. gRPC calls it the least backoff, but it is the time for TCP and TLS together: about five times across
the sea and back, on hosts that have other things to do. A peer that takes no connection is left for the next one after it."""

RECONNECT: tuple[tuple[str, int], ...] = (
    # A daemon that restarts is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
)

OPTIONS: tuple[tuple[str, int], ...] = (
    *RECONNECT,
    # A dead peer is found within 20 s also while nothing is asked of it.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
)
