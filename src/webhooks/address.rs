//! Where messages may go.
//!
//! Whoever may name an address could else have this server knock at doors that it alone can
//! reach: its own ports, its neighbours', the metadata of its cloud.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest13::Url;

/// The longest address, in bytes.
const LONGEST: usize = 2048;

/// Where messages go.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl(Url);

/// Why a text is no address for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsuitableUrl {
    /// It is no address of the web.
    #[error(
        "expected an address such as https://example.org/hook, without a name or password in it"
    )]
    Malformed,
    /// It goes without TLS.
    #[error("expected an address that begins with https://")]
    Plain,
    /// It is in a network that is not everybody's.
    #[error("expected an address that is public")]
    Private,
}

impl WebhookUrl {
    /// Reads an address. What a name stands for is looked at when a message is sent.
    ///
    /// # Errors
    /// [`UnsuitableUrl`] says what is wrong with it.
    pub fn parse(text: &str, allow_private: bool) -> Result<Self, UnsuitableUrl> {
        let url = Url::parse(text).map_err(|_| UnsuitableUrl::Malformed)?;
        let has_login = !url.username().is_empty() || url.password().is_some();
        let is_web = ["http", "https"].contains(&url.scheme()) && url.has_host();
        if text.len() > LONGEST || has_login || !is_web {
            return Err(UnsuitableUrl::Malformed);
        }
        let url = Self(url);
        url.check(allow_private).map(|()| url)
    }

    /// Whether messages may go there by what is written: settings may have changed since.
    ///
    /// # Errors
    /// [`UnsuitableUrl`] says why not.
    pub fn check(&self, allow_private: bool) -> Result<(), UnsuitableUrl> {
        if allow_private {
            return Ok(());
        }
        if self.0.scheme() != "https" {
            return Err(UnsuitableUrl::Plain);
        }
        // An address in figures is not looked up any more.
        let host = self.0.host_str().unwrap_or_default().trim_matches(['[', ']']);
        match host.parse::<IpAddr>() {
            Ok(address) if !is_public(address) => Err(UnsuitableUrl::Private),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for WebhookUrl {
    /// Not what follows the host: it may be a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WebhookUrl({})", self.0.host_str().unwrap_or_default())
    }
}

/// Ranges of IPv4 that are not everybody's, by IANA's registry of special-purpose addresses:
/// first address, and bits that all have in common.
const SPECIAL_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Metadata of clouds, among others.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Groups, and what is kept for later.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Whether anybody could reach `address`.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_within = |(first, bits): &(Ipv4Addr, u32)| {
                (address.to_bits() ^ first.to_bits()) >> (32 - bits) == 0
            };
            !SPECIAL_V4.iter().any(is_within)
        }
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Of IPv6 one range is everybody's, with exceptions; others stand for an address of IPv4.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [first, second, ..] = segments;
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public(mapped.into());
    }
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        // The last half but one of what a translator stands for.
        let translated = Ipv4Addr::from_bits(u32::from(segments[6]) << 16 | u32::from(segments[7]));
        return is_public(translated.into());
    }
    let is_global = first & 0xe000 == 0x2000;
    let is_for_protocols = first == 0x2001 && second < 0x0200;
    let is_example = (first, second) == (0x2001, 0x0db8) || (first == 0x3fff && second < 0x1000);
    let is_6to4 = first == 0x2002;
    is_global && !is_for_protocols && !is_example && !is_6to4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_everybodys_are_known_however_they_are_written() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "100::1",
            "3fff::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2a00:1450::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn an_address_is_public_and_has_tls_unless_both_are_waived() {
        for (text, fault) in [
            ("http://example.org/", UnsuitableUrl::Plain),
            ("https://127.0.0.1/", UnsuitableUrl::Private),
            // As browsers read it: the same.
            ("https://2130706433/", UnsuitableUrl::Private),
            ("https://0x7f.1/", UnsuitableUrl::Private),
            ("https://[::1]:8443/x", UnsuitableUrl::Private),
            ("https://[::ffff:169.254.169.254]/", UnsuitableUrl::Private),
        ] {
            assert_eq!(WebhookUrl::parse(text, false), Err(fault), "{text}");
            assert!(WebhookUrl::parse(text, true).is_ok(), "{text}");
        }
        for text in ["", "hook", "ftp://a/", "https://", "https://me:secret@a/", "https://me@a/"] {
            assert_eq!(WebhookUrl::parse(text, true), Err(UnsuitableUrl::Malformed), "{text}");
        }
        let long = format!("https://example.org/{}", "a".repeat(LONGEST));
        assert_eq!(WebhookUrl::parse(&long, true), Err(UnsuitableUrl::Malformed));
        let url = WebhookUrl::parse("https://example.org/hook?token=secret", false).unwrap();
        assert_eq!(format!("{url:?}"), "WebhookUrl(example.org)");
    }
}
