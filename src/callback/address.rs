//! Which addresses callbacks may be sent to.
//!
//! The sources are IANA's registries of special-purpose addresses, [for IPv4] and [for IPv6], and of [the space of IPv6]. What
//! they do not call globally reachable is refused, and so is what leads to such an address inside another.
//!
//! [for IPv4]: https://www.iana.org/assignments/iana-ipv4-special-registry/
//! [for IPv6]: https://www.iana.org/assignments/iana-ipv6-special-registry/
//! [the space of IPv6]: https://www.iana.org/assignments/ipv6-address-space/

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Networks of IPv4 whose addresses are not reachable from everywhere, or that are no single host's. Each of these has one
/// line in the registry, or more that lie in it, with the exception of the last two (RFC 5771 and RFC 1112).
const SPECIAL_V4: &[Network] = &[
    // "This network", with the unspecified address.
    Network::v4([0, 0, 0, 0], 8),
    // Private use.
    Network::v4([10, 0, 0, 0], 8),
    // Shared by the customers of a provider.
    Network::v4([100, 64, 0, 0], 10),
    // Loopback.
    Network::v4([127, 0, 0, 0], 8),
    // Link-local, where clouds answer with metadata and credentials.
    Network::v4([169, 254, 0, 0], 16),
    // Private use.
    Network::v4([172, 16, 0, 0], 12),
    // Protocol assignments. Two in it are reachable, and nobody's receiver.
    Network::v4([192, 0, 0, 0], 24),
    // Documentation.
    Network::v4([192, 0, 2, 0], 24),
    // Relays of 6to4, which are deprecated.
    Network::v4([192, 88, 99, 0], 24),
    // Private use.
    Network::v4([192, 168, 0, 0], 16),
    // Benchmarking.
    Network::v4([198, 18, 0, 0], 15),
    // Documentation.
    Network::v4([198, 51, 100, 0], 24),
    Network::v4([203, 0, 113, 0], 24),
    // Multicast.
    Network::v4([224, 0, 0, 0], 4),
    // Reserved, with the address of broadcasts.
    Network::v4([240, 0, 0, 0], 4),
];

/// The part of IPv6 in which addresses are given to hosts of the Internet. Loopback, link-local, site-local and unique-local
/// addresses, discarding, segments of routing, multicast and what translates locally (`64:ff9b:1::/48`) lie outside of it, and so
/// do addresses of IPv4 in older clothes (`::/96`), which lead nowhere.
const GLOBAL_V6: Network = Network::v6([0x2000, 0, 0, 0], 3);

/// Networks in it that are not reachable from everywhere.
const SPECIAL_V6: &[Network] = &[
    // Protocol assignments, among them Teredo, benchmarking and ORCHID. A few are reachable, and nobody's receiver.
    Network::v6([0x2001, 0, 0, 0], 23),
    // Documentation.
    Network::v6([0x2001, 0xdb8, 0, 0], 32),
    Network::v6([0x3fff, 0, 0, 0], 20),
];

/// Where a gateway makes IPv4 of the last four bytes (RFC 6052).
const NAT64: Network = Network::v6([0x64, 0xff9b, 0, 0], 96);

/// Where a relay makes IPv4 of the four bytes behind the first two (RFC 3056).
const SIX_TO_FOUR: Network = Network::v6([0x2002, 0, 0, 0], 16);

/// Which addresses callbacks may be sent to: those that are reachable from everywhere, and those that the operator allows
/// besides, but none that the operator refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressRules {
    pub allowed: Vec<Network>,
    pub refused: Vec<Network>,
}

impl AddressRules {
    /// Whether callbacks may be sent there.
    pub fn permits(&self, ip: IpAddr) -> bool {
        self.allows(ip) || is_global(ip) && !self.refuses(ip)
    }

    /// Whether the operator allows it by name, whatever it is. An IPv4 address that is mapped into IPv6 is that IPv4 address;
    /// one inside of 6to4 or NAT64 is not.
    pub fn allows(&self, ip: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(ip)) && !self.refuses(ip)
    }

    /// Whether the operator refuses it by name, or what it leads to.
    fn refuses(&self, ip: IpAddr) -> bool {
        let is_named = |ip| self.refused.iter().any(|network| network.contains(ip));
        is_named(ip) || inner(ip).is_some_and(is_named)
    }
}

/// The address of IPv4 to which one of IPv6 leads by a gateway or a relay.
fn inner(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = ip else { return None };
    let octets = v6.octets();
    let [a, b, c, d] = if NAT64.contains(ip) {
        [octets[12], octets[13], octets[14], octets[15]]
    } else if SIX_TO_FOUR.contains(ip) {
        [octets[2], octets[3], octets[4], octets[5]]
    } else {
        return None;
    };
    Some(Ipv4Addr::new(a, b, c, d).into())
}

fn is_global(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !SPECIAL_V4.iter().any(|network| network.contains(ip.into())),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    if let Some(inner) = inner(ip.into()) {
        return is_global(inner);
    }
    GLOBAL_V6.contains(ip.into()) && !SPECIAL_V6.iter().any(|network| network.contains(ip.into()))
}

/// The addresses that begin with the same bits: `10.0.0.0/8`, `fd00::/8`, or a single address. IPv4 that is mapped into IPv6 is
/// IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    /// All bits behind the prefix are zero. It is no mapped IPv4.
    first: IpAddr,
    /// How many bits are the same.
    prefix: u8,
}

impl Network {
    const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Self {
        Self { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6([a, b, c, d]: [u16; 4], prefix: u8) -> Self {
        Self { first: IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)), prefix }
    }

    /// The addresses of this host that no other one reaches.
    pub fn of_this_host() -> [Self; 2] {
        [Self::v4([127, 0, 0, 0], 8), Self { first: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 }]
    }

    /// Whether an address is one of these.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.first.is_ipv4() && cut(ip, self.prefix) == self.first
    }
}

/// How many bits an address has.
fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// An address with only this many bits, which it has.
fn cut(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

impl TryFrom<String> for Network {
    type Error = BadNetwork;

    fn try_from(text: String) -> Result<Self, BadNetwork> {
        text.parse()
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| BadNetwork::Syntax)?;
        let prefix = match prefix {
            None => width(ip),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| BadNetwork::Syntax)?
            }
            Some(_) => return Err(BadNetwork::Syntax),
        };
        if prefix > width(ip) {
            return Err(BadNetwork::Prefix(width(ip)));
        }
        // What is mapped is written and compared as what it is.
        let network = match (ip, ip.to_canonical()) {
            (IpAddr::V6(_), ip @ IpAddr::V4(_)) if prefix >= 96 => Self { first: ip, prefix: prefix - 96 },
            _ => Self { first: ip, prefix },
        };
        let first = cut(network.first, network.prefix);
        if first != network.first {
            return Err(BadNetwork::HostBits(Self { first, ..network }));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == width(self.first) {
            self.first.fmt(f)
        } else {
            write!(f, "{}/{}", self.first, self.prefix)
        }
    }
}

/// Why a text is no network, to be continued from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadNetwork {
    #[error("is no network: write one such as `10.0.0.0/8` or `fd00::/8`, or a single IP address")]
    Syntax,
    #[error("has too many bits behind the slash: write at most {0}")]
    Prefix(u8),
    #[error("has bits set behind its prefix: write `{0}` for that network, or a single IP address")]
    HostBits(Network),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn rules(allowed: &[&str]) -> AddressRules {
        AddressRules { allowed: networks(allowed), refused: Vec::new() }
    }

    /// The same four bytes inside of an IPv6 address.
    fn clothed(ip: Ipv4Addr, clothes: &str) -> IpAddr {
        let [a, b, c, d] = ip.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        self::ip(&match clothes {
            "2002" => format!("2002:{high:x}:{low:x}::1"),
            prefix => format!("{prefix}{high:x}:{low:x}"),
        })
    }

    #[test]
    fn the_ends_of_each_special_network_are_refused_and_their_neighbours_are_not() {
        for (first, last) in [
            ("0.0.0.0", "0.255.255.255"),
            ("10.0.0.0", "10.255.255.255"),
            ("100.64.0.0", "100.127.255.255"),
            ("127.0.0.0", "127.255.255.255"),
            ("169.254.0.0", "169.254.255.255"),
            ("172.16.0.0", "172.31.255.255"),
            ("192.0.0.0", "192.0.0.255"),
            ("192.0.2.0", "192.0.2.255"),
            ("192.88.99.0", "192.88.99.255"),
            ("192.168.0.0", "192.168.255.255"),
            ("198.18.0.0", "198.19.255.255"),
            ("198.51.100.0", "198.51.100.255"),
            ("203.0.113.0", "203.0.113.255"),
            ("224.0.0.0", "255.255.255.255"),
            ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let next = |text, up: bool| match ip(text) {
                IpAddr::V4(ip) if up => Some(ip.to_bits().checked_add(1).map(Ipv4Addr::from_bits)?.into()),
                IpAddr::V4(ip) => Some(ip.to_bits().checked_sub(1).map(Ipv4Addr::from_bits)?.into()),
                IpAddr::V6(ip) if up => Some(ip.to_bits().checked_add(1).map(Ipv6Addr::from_bits)?.into()),
                IpAddr::V6(ip) => Some(ip.to_bits().checked_sub(1).map(Ipv6Addr::from_bits)?.into()),
            };
            let rules = AddressRules::default();
            for refused in [first, last] {
                assert!(!rules.permits(ip(refused)), "{refused}");
            }
            for permitted in [next(first, false), next(last, true)].into_iter().flatten() {
                assert!(rules.permits(permitted), "{permitted}");
            }
        }
    }

    #[test]
    fn well_known_addresses_are_judged() {
        let rules = AddressRules::default();
        for permitted in
            ["1.1.1.1", "8.8.8.8", "192.0.1.1", "2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888"]
        {
            assert!(rules.permits(ip(permitted)), "{permitted}");
        }
        for refused in [
            "127.0.0.1",
            "169.254.169.254",
            "255.255.255.255",
            "::",
            "::1",
            "::8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:20::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!rules.permits(ip(refused)), "{refused}");
        }
    }

    #[test]
    fn what_is_allowed_is_permitted_mapped_too_but_not_by_a_gateway() {
        let rules = rules(&["10.1.0.0/16", "fd00::/8", "127.0.0.1", "::ffff:192.168.1.0/120"]);
        for allowed in
            ["10.1.0.0", "::ffff:10.1.255.255", "fd12::1", "127.0.0.1", "::ffff:127.0.0.1", "192.168.1.9"]
        {
            assert!(rules.permits(ip(allowed)) && rules.allows(ip(allowed)), "{allowed}");
        }
        for refused in
            ["10.2.0.0", "fc00::1", "127.0.0.2", "64:ff9b::10.1.0.1", "2002:a01:1::1", "::10.1.0.1"]
        {
            assert!(!rules.permits(ip(refused)), "{refused}");
        }
        assert!(rules.permits(ip("8.8.8.8")) && !rules.allows(ip("8.8.8.8")));
    }

    #[test]
    fn what_is_refused_is_not_permitted_although_it_is_public_or_allowed() {
        let rules = AddressRules {
            allowed: networks(&["10.0.0.0/8", "8.8.8.8"]),
            refused: networks(&["8.8.0.0/16", "10.1.0.0/16", "2606:4700::/32"]),
        };
        for refused in [
            "8.8.8.8",
            "8.8.4.4",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "10.1.2.3",
            "2606:4700::1111",
        ] {
            assert!(!rules.permits(ip(refused)) && !rules.allows(ip(refused)), "{refused}");
        }
        for permitted in ["8.9.0.1", "10.2.0.1", "64:ff9b::8.9.0.1", "2606:4701::1"] {
            assert!(rules.permits(ip(permitted)), "{permitted}");
        }
    }

    #[test]
    fn a_network_is_written_in_one_way_and_what_is_wrong_is_said() {
        for (text, spelled) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("FD00:0::/8", "fd00::/8"),
            ("::1/128", "::1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), spelled);
        }
        let syntax = "is no network: write one such as `10.0.0.0/8` or `fd00::/8`, or a single IP address";
        let bits = |network| {
            format!(
                "has bits set behind its prefix: write `{network}` for that network, or a single IP address"
            )
        };
        for (text, why) in [
            ("10.0.0.1/8", bits("10.0.0.0/8")),
            ("10.0.0.1/0", bits("0.0.0.0/0")),
            ("fd00::1/8", bits("fd00::/8")),
            ("::ffff:10.0.0.1/104", bits("10.0.0.0/8")),
            ("::ffff:10.0.0.0/95", bits("::fffe:0:0/95")),
            ("10.0.0.0/33", "has too many bits behind the slash: write at most 32".to_owned()),
            ("fd00::/129", "has too many bits behind the slash: write at most 128".to_owned()),
        ] {
            assert_eq!(text.parse::<Network>().unwrap_err().to_string(), why, "{text}");
        }
        for text in [
            "",
            "/",
            "10.0.0.0/",
            "/8",
            "10/8",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0.0/ 8",
            "010.0.0.0/8",
            "host",
            "fe80::1%eth0",
            "[::1]",
            "10.0.0.0/999",
        ] {
            assert_eq!(text.parse::<Network>().unwrap_err().to_string(), syntax, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_the_standard_library_knows_to_be_special_is_refused_in_all_clothes(
            bits in any::<u32>(),
            near in any::<bool>(),
        ) {
            // Half of them from where the special ones are close together.
            let bits = if near { bits & 0x00ff_ffff | 0xc000_0000 } else { bits };
            let inner = Ipv4Addr::from_bits(bits);
            let special = inner.is_private() || inner.is_loopback() || inner.is_link_local() || inner.is_multicast()
                || inner.is_broadcast() || inner.is_documentation() || inner.is_unspecified();
            let rules = AddressRules::default();
            let permitted = rules.permits(inner.into());
            prop_assert!(!(special && permitted), "{}", inner);
            for clothes in ["::ffff:", "64:ff9b::", "2002"] {
                prop_assert_eq!(rules.permits(clothed(inner, clothes)), permitted, "{} {}", clothes, inner);
            }
            for clothes in ["::", "64:ff9b:1::", "::ffff:0:", "fe80::5efe:", "2001:0:"] {
                let clothed = if clothes == "2001:0:" { ip(&format!("2001::{inner}")) } else { clothed(inner, clothes) };
                prop_assert!(!rules.permits(clothed), "{} {}", clothes, inner);
            }
        }

        #[test]
        fn of_ipv6_only_the_global_part_is_permitted(bits in any::<u128>(), top in 0_u128..8) {
            let ip = Ipv6Addr::from_bits(bits >> 3 | top << 125);
            let global = top == 1 && !SPECIAL_V6.iter().any(|network| network.contains(ip.into()));
            // By chance no address is mapped, but one may be of 6to4.
            prop_assume!(!SIX_TO_FOUR.contains(ip.into()) && !NAT64.contains(ip.into()) && ip.to_ipv4_mapped().is_none());
            prop_assert_eq!(AddressRules::default().permits(ip.into()), global, "{}", ip);
        }

        #[test]
        fn a_network_holds_the_addresses_that_begin_as_it_does(
            bits in any::<u128>(),
            prefix in 0_u8..=128,
            flip in 0_u8..128,
            v4 in any::<bool>(),
        ) {
            let width: u8 = if v4 { 32 } else { 128 };
            let (prefix, flip) = (prefix % (width + 1), flip % width);
            let address = |bits: u128| -> IpAddr {
                if v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
            };
            let whole = address(bits);
            prop_assume!(v4 || whole.to_canonical().is_ipv6());
            let network = match format!("{whole}/{prefix}").parse::<Network>() {
                Ok(network) => network,
                Err(BadNetwork::HostBits(network)) => network,
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            prop_assert!(network.contains(whole));
            prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
            // The bit that is counted from the front.
            let other = address(bits ^ 1 << (width - 1 - flip));
            prop_assert_eq!(network.contains(other), flip >= prefix, "{} {}", network, other);
        }

        #[test]
        fn no_text_breaks_the_reader(text in "[0-9a-f.:/]{0,40}|\\PC{0,20}") {
            if let Ok(network) = text.parse::<Network>() {
                prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
            }
        }
    }
}
