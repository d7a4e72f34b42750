//! Fixtures of the root integration tests.
