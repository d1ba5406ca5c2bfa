"""The test network in namespaces that the demo, the tests and the benchmarks share."""
