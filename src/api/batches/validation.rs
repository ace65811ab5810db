//! A batch's file is looked through before anything is made of it.

use std::collections::HashSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::driver::{Trouble, Work};
use super::input::{InputLines, Line};
use super::line::{self, Expected, LineFault};
use crate::jobs::batches::BatchFault;

/// Faults that are told of a file.
const MOST_FAULTS: usize = 100;

/// Looks through the file and notes what is wrong with it, or that nothing is.
pub(super) async fn validate(work: &Work) -> Result<bool, Trouble> {
    let _turn = work.state.batches.validating.acquire().await;
    let checked = check(work).await?;
    let (store, id) = (&work.store, work.batch.id);
    Ok(match checked {
        Checked { faults, requests } if faults.is_empty() => {
            store.begin_batch(id, requests).await?
        }
        Checked { faults, .. } => store.fail_batch(id, faults).await?,
    })
}

/// What was found.
#[derive(Default)]
struct Checked {
    requests: u64,
    faults: Vec<BatchFault>,
}

async fn check(work: &Work) -> Result<Checked, Trouble> {
    let Some(mut lines) = work.input().await? else {
        return Err(Trouble::InputGone);
    };
    let (mut seen, mut checked) = (HashSet::new(), Checked::default());
    let most = work.state.config.batches.max_requests;
    while checked.faults.len() < MOST_FAULTS
        && let Some(line) = next(&mut lines, work).await?
    {
        checked.requests += 1;
        if checked.requests > most {
            let message = format!("The file has more than {most} requests.");
            return Ok(alone("too_many_tasks", message));
        }
        let (number, custom_id) = line;
        let digest: Result<[u8; 32], LineFault> =
            custom_id.map(|custom_id| Sha256::digest(custom_id).into());
        let is_new = digest.map(|digest| seen.insert(digest));
        match is_new {
            Ok(true) => {}
            Ok(false) => checked.faults.push(LineFault::duplicate().at(number)),
            Err(fault) => checked.faults.push(fault.at(number)),
        }
    }
    if checked.requests == 0 {
        return Ok(alone("empty_file", "The file of the batch has no request in it.".to_owned()));
    }
    Ok(checked)
}

/// One fault, of the whole file.
fn alone(code: &str, message: String) -> Checked {
    Checked { requests: 0, faults: vec![of_file(code, message)] }
}

fn of_file(code: &str, message: String) -> BatchFault {
    BatchFault { code: code.to_owned(), message, param: None, line: None }
}

/// What is wrong where there is no file any more.
pub(super) fn input_gone() -> BatchFault {
    of_file("invalid_input_file", "The file of the batch is lost.".to_owned())
}

/// What the next request is called, or what is wrong with it.
async fn next(
    lines: &mut InputLines,
    work: &Work,
) -> Result<Option<(u64, Result<String, LineFault>)>, Trouble> {
    let max_bytes = work.state.config.max_upload_bytes;
    let line = lines.next().await.map_err(Trouble::of_input)?;
    let Some(line) = line else { return Ok(None) };
    let number = line.number();
    Ok(Some((number, custom_id(work, line).await?.unwrap_or(Err(LineFault::too_long(max_bytes))))))
}

/// What a request is called, or what is wrong with it; nothing is known of a line that is too
/// long.
pub(super) async fn custom_id(
    work: &Work,
    line: Line,
) -> Result<Option<Result<String, LineFault>>, Trouble> {
    let Line::Whole(line) = line else { return Ok(None) };
    let (addresses, max_fields) = (Arc::clone(&work.addresses), work.state.config.max_parts);
    let reading = tokio::task::spawn_blocking(move || {
        let expected = Expected { addresses: &addresses, max_fields };
        line::read(&line.bytes, expected).map(|request| request.custom_id)
    });
    Ok(Some(reading.await?))
}
