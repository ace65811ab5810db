//! The parts of a picture's way that can be measured alone.

use std::fmt;
use std::str::FromStr;

/// A part of a picture's way that can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Prompts, and the pictures shown with them, to hidden states.
    TextEncoder,
    /// Reference pictures to latents.
    VaeEncoder,
    /// All steps, with the modulation that they have in common.
    Transformer,
    /// Latents to a picture.
    VaeDecoder,
}

impl Part {
    /// All of them, in order.
    pub const ALL: [Self; 4] =
        [Self::TextEncoder, Self::VaeEncoder, Self::Transformer, Self::VaeDecoder];

    /// The name that asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text-encoder",
            Self::VaeEncoder => "vae-encoder",
            Self::Transformer => "transformer",
            Self::VaeDecoder => "vae-decoder",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no part of this name.
#[derive(Debug, thiserror::Error)]
#[error("no part is called '{name}'; there are {}", Part::ALL.map(Part::name).join(", "))]
pub struct UnknownPart {
    name: String,
}

impl FromStr for Part {
    type Err = UnknownPart;

    fn from_str(name: &str) -> Result<Self, UnknownPart> {
        let found = Self::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| UnknownPart { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_found_by_its_name_and_others_are_refused_with_all_names() {
        for part in Part::ALL {
            assert_eq!(part.name().parse::<Part>().unwrap(), part);
        }
        let refused = "steps".parse::<Part>().unwrap_err().to_string();
        assert!(refused.contains("'steps'") && refused.contains("vae-decoder"), "{refused}");
    }
}
