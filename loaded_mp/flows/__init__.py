"""The flow table: which backend a flow belongs to. Arrays in, arrays out; time comes in as `now_s`."""
