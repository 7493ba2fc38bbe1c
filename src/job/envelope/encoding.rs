//! Bytes that are text in another encoding than UTF-8, or no text before something undoes a compression.

use std::fmt;

/// The bytes that formats begin with which publishers and tools use for JSON.
const COMPRESSIONS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x78\x01", "zlib"),
    (b"\x78\x5e", "zlib"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
];

/// The mark that some tools of Windows put before UTF-8.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// So many bytes of the beginning are enough for [`foreign`].
pub const FOREIGN_BYTES: usize = 6;

/// How bytes are written that JSON in UTF-8 is never written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Compressed, with this.
    Compressed(&'static str),
    Utf16,
    Utf32,
    /// UTF-8 that begins with a byte order mark.
    Marked,
}

impl fmt::Display for Foreign {
    /// Continues "it is".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed(name) => write!(f, "compressed with {name}"),
            Self::Utf16 => f.write_str("UTF-16"),
            Self::Utf32 => f.write_str("UTF-32"),
            Self::Marked => f.write_str("UTF-8 that begins with a byte order mark"),
        }
    }
}

/// What the beginning of a body or a file says about its encoding; `None` where it may be JSON.
pub fn foreign(start: &[u8]) -> Option<Foreign> {
    if let Some((_, name)) = COMPRESSIONS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(Foreign::Compressed(name));
    }
    match start {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some(Foreign::Utf32),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(Foreign::Utf16),
        _ if start.starts_with(BYTE_ORDER_MARK) => Some(Foreign::Marked),
        // Without a mark: an ASCII character, as JSON begins with one, and zeros around it.
        [0, 0, 0, 1..=0x7f, ..] | [1..=0x7f, 0, 0, 0, ..] => Some(Foreign::Utf32),
        [0, 1..=0x7f, ..] | [1..=0x7f, 0, ..] => Some(Foreign::Utf16),
        _ => None,
    }
}

/// Whether a `content_encoding` names a compression. Some clients name a charset there, such as `utf-8`.
pub fn names_compression(content_encoding: &str) -> bool {
    const NAMES: &[&str] = &[
        "gzip",
        "x-gzip",
        "deflate",
        "zlib",
        "br",
        "brotli",
        "zstd",
        "zstandard",
        "compress",
        "x-compress",
        "lz4",
        "snappy",
        "bzip2",
        "x-bzip2",
        "bz2",
        "xz",
        "lzma",
    ];
    // Several that were applied in turn are listed with commas.
    content_encoding.split(',').any(|name| NAMES.iter().any(|known| name.trim().eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_told_by_their_first_bytes_and_json_is_none_of_them() {
        for (bytes, encoding) in [
            (&b"\x1f\x8b\x08\0"[..], Foreign::Compressed("gzip")),
            (b"\x28\xb5\x2f\xfd\x04", Foreign::Compressed("zstd")),
            (b"\x78\x9c\xab\x56", Foreign::Compressed("zlib")),
            (b"\xef\xbb\xbf{}", Foreign::Marked),
            (b"\xff\xfe{\0}\0", Foreign::Utf16),
            (b"\xfe\xff\0{\0}", Foreign::Utf16),
            (b"{\0}\0", Foreign::Utf16),
            (b"\0{\0}", Foreign::Utf16),
            (b"\xff\xfe\0\0{\0\0\0", Foreign::Utf32),
            (b"{\0\0\0}\0\0\0", Foreign::Utf32),
            (b"\0\0\0{\0\0\0}", Foreign::Utf32),
        ] {
            assert_eq!(foreign(bytes), Some(encoding), "{bytes:?}");
        }
        for json in ["", "{", "{}", " {\"a\":1}", "\n[1]", "\"x\"", "1", "\u{e9}", "hello"] {
            assert_eq!(foreign(json.as_bytes()), None, "{json:?}");
        }
    }

    #[test]
    fn a_charset_is_no_compression() {
        for name in ["gzip", "GZIP", "x-gzip", "br", "zstd", "identity, deflate"] {
            assert!(names_compression(name), "{name}");
        }
        for name in ["", "UTF-8", "utf8", "utf-8", "binary", "identity", "iso-8859-1", "us-ascii"] {
            assert!(!names_compression(name), "{name}");
        }
    }
}
