//! Keys that the `config.json` of several components have.

use crate::checkpoint::ConfigFile;

/// The names of SiLU.
pub(in crate::model) const SILU: &[&str] = &["silu", "swish"];

/// Notes a fault if `heads` do not divide `width`.
pub(in crate::model) fn check_heads(file: &mut ConfigFile, width: usize, heads: usize) {
    if heads == 0 || !width.is_multiple_of(heads) {
        file.fault(format!("{heads} attention heads do not divide a width of {width}"));
    }
}

/// Takes `key` as one block type a level, and says which of them are `special`.
pub(in crate::model) fn block_types(
    file: &mut ConfigFile,
    key: &str,
    (plain, special): (&str, &str),
    blocks: usize,
) -> Vec<bool> {
    let names: Vec<String> = file.required(key);
    for name in names.iter().filter(|name| *name != plain && *name != special) {
        file.fault(format!("{key} has \"{name}\"; only {plain} and {special} are supported"));
    }
    if names.len() != blocks {
        file.fault(format!("{key} has {} entries for {blocks} blocks", names.len()));
        return vec![false; blocks];
    }
    names.iter().map(|name| name == special).collect()
}
