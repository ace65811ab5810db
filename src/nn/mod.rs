//! Layers that at least two components share.
