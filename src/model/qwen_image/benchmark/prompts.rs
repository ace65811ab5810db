//! The prompts that are measured with.

use crate::domain::{Prompt, ValidationError};
use crate::model::benchmark::{BenchmarkError, BenchmarkPlan};
use crate::model::qwen_image::pipeline::{Extent, Pipeline};

/// As long as people's instructions are.
const PROMPT: &str = "Replace the background with a quiet beach at sunset, and keep the person.";
/// The one that Qwen recommends.
const NEGATIVE_PROMPT: &str = " ";
/// What a negative prompt is made of that has a length to keep to.
const NEGATIVE_WORDS: &str = "blurred, with artefacts, badly lit, cut off at the edges, ";

/// The prompts of a request.
pub(super) struct Prompts {
    pub(super) positive: Prompt,
    pub(super) negative: Prompt,
    /// Tokens of the words of those that are used, the positive one first.
    pub(super) words: Vec<usize>,
}

/// The prompt that is asked with where no length is given.
pub(super) fn usual() -> Result<Prompt, ValidationError> {
    Prompt::new(PROMPT)
}

impl Prompts {
    /// Those of `plan`.
    pub(super) fn of(
        pipeline: &Pipeline,
        extent: &Extent,
        plan: &BenchmarkPlan,
    ) -> Result<Self, BenchmarkError> {
        let count = |text: &str| words_of(pipeline, extent, text);
        let [positive, negative] = match plan.words {
            None => [PROMPT.to_owned(), NEGATIVE_PROMPT.to_owned()],
            Some(words) => [fitted(PROMPT, words, count)?, fitted(NEGATIVE_WORDS, words, count)?],
        };
        let mut words = vec![count(&positive)];
        words.extend(plan.guidance.acts().then(|| count(&negative)));
        let (positive, negative) = (Prompt::new(positive)?, Prompt::negative(negative)?);
        Ok(Self { positive, negative, words })
    }
}

/// As much of `text`, again and again, as makes `asked` tokens of words; `count` counts.
fn fitted(
    text: &str,
    asked: usize,
    count: impl Fn(&str) -> usize,
) -> Result<String, BenchmarkError> {
    let mut made = String::new();
    let least = count(" ");
    for letter in text.chars().cycle().take(Prompt::MAX_CHARACTERS) {
        made.push(letter);
        match count(&made) {
            found if found == asked => return Ok(made),
            found if found > asked => break,
            _ => {}
        }
    }
    Err(BenchmarkError::Words { asked, least })
}

/// Tokens of `prompt` with the template around it, without those of pictures; none if it
/// makes none.
fn words_of(pipeline: &Pipeline, extent: &Extent, prompt: &str) -> usize {
    let template = &pipeline.variant.template;
    let tokens = pipeline.components.tokenizer.tokenise(template, prompt, &extent.shown_grids);
    tokens.ok().and_then(Result::ok).map_or(0, |tokens| {
        (tokens.token_ids.len() - extent.shown_tokens()).saturating_sub(template.drop_tokens)
    })
}
