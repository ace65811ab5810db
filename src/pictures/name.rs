//! The names of stored pictures. A name cannot be guessed, and says until when the picture
//! is there: so that is known after a restart, by every server that shares the store,
//! before the store is asked, and whatever a copy or a backup does to the time of a file.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// The endings of names, each with the media type that it stands for.
const MEDIA_TYPES: [(&str, &str); 3] =
    [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")];

/// Digits of the time, so that names sort by it: up to the year 2286.
const TIME_DIGITS: usize = 10;
/// Hexadecimal digits of what cannot be guessed.
const SECRET_DIGITS: usize = 32;

/// The media type of a file by the end of its name; of any other, PNG's.
#[must_use]
pub fn media_type_of(name: &str) -> &'static str {
    let extension = name.rsplit('.').next();
    let known = MEDIA_TYPES.iter().find(|(known, _)| Some(*known) == extension);
    known.map_or("image/png", |(_, media_type)| media_type)
}

/// A name that nobody can guess.
pub(super) fn secret() -> String {
    Uuid::new_v4().simple().to_string()
}

/// The name of a picture that has its time within: `SECONDS-SECRET.EXTENSION`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PictureName {
    text: String,
    /// Seconds since 1970.
    until: u64,
}

impl PictureName {
    /// A new name, of a picture that is there for `lifetime` from now.
    pub(super) fn new(lifetime: Duration, extension: &str) -> Self {
        let until = unix_seconds().saturating_add(lifetime.as_secs());
        Self { text: format!("{until:0TIME_DIGITS$}-{}.{extension}", secret()), until }
    }

    /// Reads a name; `None` if it is none of ours: it then leads nowhere, whatever is in it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, rest) = text.split_once('-')?;
        let (secret, extension) = rest.split_once('.')?;
        let is_hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_ours = time.len() == TIME_DIGITS
            && time.bytes().all(|byte| byte.is_ascii_digit())
            && secret.len() == SECRET_DIGITS
            && secret.bytes().all(is_hexadecimal)
            && MEDIA_TYPES.iter().any(|(known, _)| *known == extension);
        let until = time.parse().ok().filter(|_| is_ours)?;
        Some(Self { text: text.to_owned(), until })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// For how long the picture is still there; `None` if its time is over.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let left = self.until.checked_sub(unix_seconds()).filter(|left| *left > 0)?;
        Some(Duration::from_secs(left))
    }
}

/// Seconds since 1970.
fn unix_seconds() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_name_says_until_when_its_picture_is_there() {
        let name = PictureName::new(Duration::from_secs(60), "webp");

        let read = PictureName::parse(name.as_str()).unwrap();

        assert_eq!(read, name);
        let left = read.time_left().unwrap().as_secs();
        assert!((58..=60).contains(&left), "{left}");
        assert_eq!(media_type_of(name.as_str()), "image/webp");
        assert_ne!(name, PictureName::new(Duration::from_secs(60), "webp"));
        let over = PictureName::parse(&format!("1000000000-{SECRET}.png")).unwrap();
        assert_eq!(over.time_left(), None);
        assert_eq!(PictureName::new(Duration::ZERO, "png").time_left(), None);
    }

    #[test]
    fn names_sort_by_their_time() {
        let [soon, late] = [60, 100_000].map(|seconds| {
            PictureName::new(Duration::from_secs(seconds), "png").as_str().to_owned()
        });

        assert!(soon < late);
    }

    #[test]
    fn no_other_name_is_ours() {
        for text in [
            "",
            ".",
            "..",
            "x.png",
            "../9999999999-0123456789abcdef0123456789abcdef.png",
            "9999999999-0123456789abcdef0123456789abcdef.png/..",
            "9999999999-../../../../../../../../../etc/pass.png",
            "9999999999-0123456789ABCDEF0123456789ABCDEF.png",
            "9999999999-0123456789abcdef0123456789abcdef.png#1",
            "9999999999-0123456789abcdef0123456789abcdef.svg",
            "9999999999-0123456789abcdef0123456789abcdef",
            "99999999999-0123456789abcdef0123456789abcdef.png",
            "+999999999-0123456789abcdef0123456789abcdef.png",
            "9999999999-0123456789abcdef0123456789abcde.png",
        ] {
            assert_eq!(PictureName::parse(text), None, "{text}");
        }
    }
}
