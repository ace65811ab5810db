//! The names of a model.

/// The names under which clients may ask for a model.
#[derive(Debug, Clone)]
pub(crate) struct ModelNames {
    id: Option<String>,
    /// Some end with `*`, for all names that begin so.
    pub(crate) aliases: Vec<String>,
}

impl ModelNames {
    pub(crate) fn new(id: &str, aliases: &[String]) -> Self {
        Self { id: Some(id.to_owned()), aliases: aliases.to_owned() }
    }

    /// Names that are no model's own.
    pub(crate) fn of_aliases(aliases: &[String]) -> Self {
        Self { id: None, aliases: aliases.to_owned() }
    }

    /// Whether `asked` is the model's id.
    pub(crate) fn is_id(&self, asked: &str) -> bool {
        self.id.as_deref() == Some(asked)
    }

    /// Whether `asked` is the model's id, the last part of it, or an alias.
    pub(crate) fn include(&self, asked: &str) -> bool {
        let is_alias = |alias: &String| match alias.strip_suffix('*') {
            Some(beginning) => asked.starts_with(beginning),
            None => asked == alias,
        };
        let last_part = self.id.as_deref().and_then(|id| id.rsplit('/').next());
        self.is_id(asked) || last_part == Some(asked) || self.aliases.iter().any(is_alias)
    }

    /// Whether `pattern` means this model: one of its names, or with `*` at its end how one
    /// of them begins.
    pub(crate) fn are_meant_by(&self, pattern: &str) -> bool {
        let Some(beginning) = pattern.strip_suffix('*') else {
            return self.include(pattern);
        };
        let last_part = self.id.as_deref().and_then(|id| id.rsplit('/').next());
        let aliases = self.aliases.iter().map(|alias| alias.trim_end_matches('*'));
        let mut names = self.id.as_deref().into_iter().chain(last_part).chain(aliases);
        names.any(|name| name.starts_with(beginning))
    }

    /// The id, then the aliases that are whole names.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &str> {
        let id = self.id.as_deref();
        let whole = self.aliases.iter().map(String::as_str);
        id.into_iter().chain(whole.filter(move |alias| !alias.ends_with('*') && Some(*alias) != id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> ModelNames {
        let aliases = ["gpt-image-1", "gpt-image-*", "dall-e-2"].map(str::to_owned);
        ModelNames::new("Qwen/Qwen-Image-Edit", &aliases)
    }

    #[test]
    fn a_model_goes_by_its_id_its_last_part_and_its_aliases() {
        for known in [
            "Qwen/Qwen-Image-Edit",
            "Qwen-Image-Edit",
            "gpt-image-1",
            "gpt-image-2.5-flare",
            "dall-e-2",
        ] {
            assert!(names().include(known), "{known}");
        }
        for unknown in ["Qwen", "qwen-image-edit", "", "gpt-4o", "dall-e-3", "gpt-image"] {
            assert!(!names().include(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_pattern_means_whose_name_it_is_or_begins() {
        for pattern in [
            "Qwen/Qwen-Image-Edit",
            "Qwen-Image-Edit",
            "Qwen/*",
            "Qwen-Im*",
            "dall-e-2",
            "gpt-*",
            "*",
        ] {
            assert!(names().are_meant_by(pattern), "{pattern}");
        }
        for pattern in ["Qwen", "Qwen/Qwen-Image-Edit-*", "dall-e-3*", "", "x*"] {
            assert!(!names().are_meant_by(pattern), "{pattern}");
        }
    }

    #[test]
    fn whole_names_are_listed() {
        let names = names();
        let listed: Vec<_> = names.listed().collect();

        assert_eq!(listed, ["Qwen/Qwen-Image-Edit", "gpt-image-1", "dall-e-2"]);
    }
}
