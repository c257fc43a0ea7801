//! The parser neither panics nor hangs on modified PTX: truncated texts, and texts with changed bytes and pieces.

use cuda_emulator::ptx::Module;
use quickcheck::{Gen, QuickCheck};

/// Every construct that the parser knows.
const TEXT: &str = r#".version 6.0
.target sm_70, debug
.address_size 64
.file 1 "lion.cu", 1, 2
.extern .func (.param .b32 r) vprintf (.param .b64 a);
.visible .global .align 4 .b8 TABLE[4][2] = {51, 0x7f, -1, 017};
.const .f32 ONE = 0f3F800000;
.extern .shared .align 16 .b8 rest[];
.shared .align 4 .b8 shared[64];
.visible .entry kernel(.param .u64 .ptr .global .align 16 a, .param .align 8 .b8 b[24])
.maxntid 256, 1, 1
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<5>, x;
	.reg .f64 	%fd<2>;
	.reg .b64 	%rd<3>;
	.local .align 16 .b8 stack[32];
	.loc 1 20 5
	ld.param.u64 	%rd1, [a];
$L__1:
	.pragma "nounroll";
	mov.u32 	%r1, %tid.x; // comment
	setp.lt.and.u32 %p1|_, %r1, WARP_SZ, !%p2; /* comment */
	@!%p1 bra 	$L__1;
	{ .reg .b32 t; mov.b32 t, {x, _}; bra $L__1; }
	ld.global.v2.u32 {%r1, %r2}, [%rd1+-8];
	mov.u64 %rd2, shared+8;
	add.rn.f64 %fd1, 1.0e+3, 0d3FF0000000000000;
	st.shared.u32 [rest], -2147483648;
	ret;
}
.section .debug_str { a: .b8 1, 2 }
"#;

const PIECES: [&str; 24] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    ";",
    ",",
    ":",
    "|",
    "@",
    "!",
    "+",
    "-",
    "\"",
    "/*",
    ".",
    "%",
    "18446744073709551615",
    "0f",
    ".reg",
    "\u{2028}",
];

fn quickcheck(cases: u64, holds: fn(Vec<(u16, u8)>) -> bool) {
    let seed = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_nanos() as u64);
    let seed = match std::env::var("LION_TEST_SEED") {
        Ok(text) => text.parse().expect("LION_TEST_SEED is a whole number"),
        Err(_) => seed,
    };
    println!("LION_TEST_SEED={seed}");
    QuickCheck::new()
        .tests(cases)
        .rng(Gen::from_size_and_seed(8, seed))
        .quickcheck(holds as fn(Vec<(u16, u8)>) -> bool);
}

/// Returns whether a text is accepted, or rejected with a line number that exists in the text.
fn is_sound(text: &str) -> bool {
    let lines = text.matches('\n').count() + 1;
    match Module::parse(text) {
        Ok(_) => true,
        Err(error) => (1..=lines).contains(&(error.line() as usize)),
    }
}

#[test]
fn unchanged_text_is_accepted() {
    assert_eq!(Module::parse(TEXT).err(), None);
}

#[test]
fn truncated_text_is_parsed_or_rejected() {
    for end in 0..=TEXT.len() {
        assert!(is_sound(&TEXT[..end]), "{end}");
    }
}

#[test]
fn text_with_removed_or_doubled_tokens_is_parsed_or_rejected() {
    let tokens: Vec<&str> = TEXT
        .split_inclusive(|c: char| !c.is_alphanumeric())
        .collect();
    for at in 0..tokens.len() {
        let (before, after) = (tokens[..at].concat(), tokens[at + 1..].concat());
        assert!(is_sound(&format!("{before}{after}")), "without {at}");
        let doubled = tokens[at].repeat(2);
        assert!(is_sound(&format!("{before}{doubled}{after}")), "twice {at}");
    }
}

#[test]
fn text_with_changed_bytes_is_parsed_or_rejected() {
    quickcheck(2000, |changes| {
        let mut bytes = TEXT.as_bytes().to_vec();
        for (at, value) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        is_sound(&String::from_utf8_lossy(&bytes))
    });
}

#[test]
fn text_with_inserted_or_removed_pieces_is_parsed_or_rejected() {
    quickcheck(2000, |changes| {
        let mut text = TEXT.to_owned();
        for (at, piece) in changes {
            let at = usize::from(at) % text.len();
            if text.is_char_boundary(at) && piece % 2 == 0 {
                text.insert_str(at, PIECES[usize::from(piece / 2) % PIECES.len()]);
            } else if text.is_char_boundary(at) {
                let end = (at + usize::from(piece)).min(text.len());
                let end = (end..=text.len()).find(|end| text.is_char_boundary(*end));
                text.replace_range(at..end.unwrap_or(at), "");
            }
            if text.is_empty() {
                break;
            }
        }
        is_sound(&text)
    });
}
