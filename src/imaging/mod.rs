//! Pictures as files and at other sizes.
