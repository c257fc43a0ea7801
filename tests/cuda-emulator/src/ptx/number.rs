//! Literals.

use super::ast::Operand;

const WANTED_INTEGER: &str = "an integer of at most 64 bits";

/// Parses a literal without its sign as an operand.
pub(super) fn literal(text: &str) -> Result<Operand, &'static str> {
    let digits = |prefix: [&str; 2]| prefix.iter().find_map(|p| text.strip_prefix(p));
    if let Some(hex) = digits(["0f", "0F"]) {
        return bits(hex, 8)
            .map(|bits| Operand::F32(bits as u32))
            .ok_or("8 hexadecimal digits after 0f");
    }
    if let Some(hex) = digits(["0d", "0D"]) {
        return bits(hex, 16)
            .map(Operand::F64)
            .ok_or("16 hexadecimal digits after 0d");
    }
    if let Some(hex) = digits(["0x", "0X"]) {
        return integer(hex, 16);
    }
    if let Some(binary) = digits(["0b", "0B"]) {
        return integer(binary, 2);
    }
    if text.contains(['.', 'e', 'E']) {
        return decimal(text);
    }
    match text.strip_prefix('0') {
        Some("" | "U") => Ok(Operand::Integer(0)),
        Some(octal) => integer(octal, 8),
        None => integer(text, 10),
    }
}

fn bits(hex: &str, digits: usize) -> Option<u64> {
    (hex.len() == digits && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| u64::from_str_radix(hex, 16).ok())
        .flatten()
}

fn integer(digits: &str, radix: u32) -> Result<Operand, &'static str> {
    let digits = digits.strip_suffix('U').unwrap_or(digits);
    // from_str_radix accepts a sign, but the lexer never includes one in a number.
    match u64::from_str_radix(digits, radix) {
        Ok(value) => Ok(Operand::Integer(value.into())),
        Err(_) => Err(WANTED_INTEGER),
    }
}

/// Parses a decimal float, which has double precision for every instruction type.
fn decimal(text: &str) -> Result<Operand, &'static str> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(Operand::F64(value.to_bits())),
        _ => Err("a number"),
    }
}

/// Negates a literal.
pub(super) fn negative(literal: Operand) -> Result<Operand, &'static str> {
    match literal {
        Operand::Integer(value) if value <= 1 << 63 => Ok(Operand::Integer(-value)),
        Operand::Integer(_) => Err(WANTED_INTEGER),
        Operand::F32(bits) => Ok(Operand::F32(bits ^ 1 << 31)),
        Operand::F64(bits) => Ok(Operand::F64(bits ^ 1 << 63)),
        _ => Err("a number after the minus"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_radix_up_to_64_bits() {
        for (text, value) in [
            ("0", 0),
            ("0U", 0),
            ("10U", 10),
            ("0x7fU", 127),
            ("0X7F", 127),
            ("017", 15),
            ("0b101", 5),
            ("18446744073709551615", u64::MAX.into()),
            ("0xffffffffffffffff", u64::MAX.into()),
        ] {
            assert_eq!(literal(text), Ok(Operand::Integer(value)), "{text}");
        }
    }

    #[test]
    fn floats_are_their_bits_and_decimals_are_double() {
        assert_eq!(literal("0f3F800000"), Ok(Operand::F32(0x3f80_0000)));
        assert_eq!(literal("0F7fc00001"), Ok(Operand::F32(0x7fc0_0001)));
        let one = 0x3ff0_0000_0000_0000;
        for text in ["0d3FF0000000000000", "1.0", "1e0", "10.0e-1"] {
            assert_eq!(literal(text), Ok(Operand::F64(one)), "{text}");
        }
    }

    #[test]
    fn minus_flips_the_sign() {
        let of = |text| literal(text).and_then(negative);
        assert_eq!(of("1"), Ok(Operand::Integer(-1)));
        assert_eq!(
            of("9223372036854775808"),
            Ok(Operand::Integer(i64::MIN.into()))
        );
        assert_eq!(of("9223372036854775809"), Err(WANTED_INTEGER));
        assert_eq!(of("0f00000000"), Ok(Operand::F32(0x8000_0000)));
        assert_eq!(of("1.0"), Ok(Operand::F64(0xbff0_0000_0000_0000)));
    }

    #[test]
    fn malformed_numbers_are_rejected() {
        for text in [
            "0x",
            "0xg",
            "08",
            "0b2",
            "1u",
            "18446744073709551616",
            "0x10000000000000000",
            "12ab",
            "0f3F80000",
            "0f3F8000000",
            "0f+F800000",
            "0d3FF",
            "1.0.0",
            "1e",
            "1e999",
            "1_0",
            "1.5U",
        ] {
            assert!(literal(text).is_err(), "{text}");
        }
    }
}
