//! Where a client is, behind proxies or not.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use axum::http::HeaderMap;

use crate::jobs::Owner;

/// The header in which proxies say whom they speak for, the nearest last.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Addresses that begin alike: one, or a range such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    /// Bits that all of them have in common.
    prefix: u8,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        masked(address, self.prefix) == self.first
    }
}

/// A text that is neither an address nor a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an address, or a range such as 10.0.0.0/8")]
pub struct NoNetwork;

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => {
                (address, Some(prefix.parse::<u8>().map_err(|_| NoNetwork)?))
            }
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| NoNetwork)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return Err(NoNetwork);
        }
        Ok(Self { first: masked(address, prefix), prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.prefix)
    }
}

/// `address` with all but its first `prefix` bits cleared.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

/// Whose word is taken for where a client is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Proxies {
    /// Nobody's.
    #[default]
    None,
    /// That of whoever is connected.
    Nearest,
    /// That of these.
    Trusted(Vec<Network>),
}

/// Whoever is told apart by address: a host of IPv4, or a network of IPv6, of whose
/// addresses each host has as many as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ClientAddress(IpAddr);

/// Bits of an IPv6 address that tell networks apart.
const NETWORK_BITS: u8 = 64;

impl ClientAddress {
    /// Whose jobs are those of this address.
    pub(super) fn job_owner(self) -> Owner {
        Owner::of("address", self.0.to_string().as_bytes())
    }

    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            address @ IpAddr::V4(_) => Self(address),
            address @ IpAddr::V6(_) => Self(masked(address, NETWORK_BITS)),
        }
    }
}

impl Proxies {
    /// Where the client of a request is that came from `peer`.
    pub(super) fn client(&self, headers: &HeaderMap, peer: IpAddr) -> ClientAddress {
        let peer = peer.to_canonical();
        ClientAddress::of(match self {
            Self::None => peer,
            Self::Nearest => forwarded_for(headers).next().flatten().unwrap_or(peer),
            Self::Trusted(networks) => {
                let is_trusted = |address| networks.iter().any(|network| network.contains(address));
                let mut nearest = peer;
                let mut before = forwarded_for(headers);
                // What a trusted proxy says of the hop before it is true; what others say is not.
                while is_trusted(nearest) {
                    let Some(Some(address)) = before.next() else { break };
                    nearest = address;
                }
                nearest
            }
        })
    }
}

/// The hops that proxies name, the nearest first; `None` for one that is no address.
fn forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let values = headers.get_all(FORWARDED_FOR).into_iter().collect::<Vec<_>>().into_iter().rev();
    values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',')).map(address_in)
}

/// An address as proxies write it: bare, in brackets, with a port or without.
fn address_in(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim().trim_matches('"');
    let bare = hop.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or(hop);
    let with_port = || Some(hop.parse::<std::net::SocketAddr>().ok()?.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ClientAddress {
        ClientAddress::of(text.parse().unwrap())
    }

    fn client(proxies: &Proxies, peer: &str, forwarded: &[&str]) -> ClientAddress {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        proxies.client(&headers, peer.parse().unwrap())
    }

    fn trusted(networks: &[&str]) -> Proxies {
        Proxies::Trusted(networks.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn a_range_has_the_addresses_that_begin_like_it() {
        let contains = |range: &str, address: &str| {
            range.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };

        assert!(contains("10.1.2.3/8", "10.255.0.1") && !contains("10.1.2.3/8", "11.1.2.3"));
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.4"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("fd00::/8", "fdff::1") && !contains("fd00::/8", "fe00::1"));
        assert!(contains("::/0", "fe00::1") && contains("::1", "::1"));
        for wrong in ["", "10.0.0.0/33", "::1/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "host"]
        {
            assert_eq!(wrong.parse::<Network>(), Err(NoNetwork), "{wrong}");
        }
    }

    #[test]
    fn without_proxies_nobody_is_believed() {
        assert_eq!(client(&Proxies::None, "7.7.7.7", &["1.1.1.1"]), address("7.7.7.7"));
    }

    #[test]
    fn the_nearest_hop_is_believed_where_all_headers_are() {
        let client = |forwarded| client(&Proxies::Nearest, "7.7.7.7", forwarded);

        assert_eq!(client(&["1.1.1.1, 2.2.2.2"]), address("2.2.2.2"));
        assert_eq!(client(&["1.1.1.1", "2.2.2.2:80"]), address("2.2.2.2"));
        assert_eq!(client(&["1.1.1.1, unknown"]), address("7.7.7.7"));
        assert_eq!(client(&[]), address("7.7.7.7"));
    }

    #[test]
    fn hops_are_read_from_the_right_over_trusted_ones_only() {
        let proxies = trusted(&["10.0.0.0/8", "fd00::1"]);
        let client = |peer, forwarded: &[&str]| client(&proxies, peer, forwarded);

        assert_eq!(client("7.7.7.7", &["1.1.1.1"]), address("7.7.7.7"), "an unknown peer may lie");
        assert_eq!(client("10.0.0.1", &["1.1.1.1"]), address("1.1.1.1"));
        assert_eq!(client("::ffff:10.0.0.1", &["1.1.1.1"]), address("1.1.1.1"));
        assert_eq!(client("fd00::1", &["[2001:db8::1]:443"]), address("2001:db8::1"));
        let forged = ["9.9.9.9, 1.1.1.1, 10.0.0.2"];
        assert_eq!(client("10.0.0.1", &forged), address("1.1.1.1"), "the first may be forged");
        let in_two_headers = ["9.9.9.9, 1.1.1.1", "10.0.0.2"];
        assert_eq!(client("10.0.0.1", &in_two_headers), address("1.1.1.1"));
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), address("10.0.0.3"));
        assert_eq!(client("10.0.0.1", &["1.1.1.1, unknown"]), address("10.0.0.1"));
        assert_eq!(client("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"]), address("10.0.0.2"));
        assert_eq!(client("10.0.0.1", &[]), address("10.0.0.1"));
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_client() {
        assert_eq!(address("2001:db8:0:1::1"), address("2001:db8:0:1:ffff::2"));
        assert_ne!(address("2001:db8:0:1::1"), address("2001:db8:0:2::1"));
        assert_eq!(address("::ffff:1.2.3.4"), address("1.2.3.4"));
        assert_ne!(address("1.2.3.4"), address("1.2.3.5"));
    }
}
