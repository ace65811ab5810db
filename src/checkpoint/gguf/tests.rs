//! What headers say, and what is refused.
