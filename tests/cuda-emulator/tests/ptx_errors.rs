//! Errors of the parser: the line, the token found, and what was expected.

use cuda_emulator::ptx::Module;

/// Three lines, so that the text after it begins on line 4.
const HEAD: &str = ".version 6.0\n.target sm_70\n.address_size 64\n";
/// One more line.
const KERNEL: &str = ".entry k(.param .u64 p) { .reg .pred %p<3>; .reg .b32 %r<3>;\n";

fn error_of(text: &str) -> String {
    match Module::parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

fn assert_errors(head: &str, tail: &str, cases: &[(&str, &str)]) {
    for (text, message) in cases {
        assert_eq!(error_of(&format!("{head}{text}{tail}")), *message, "{text}");
    }
}

#[test]
fn errors_in_the_header() {
    assert_errors(
        "",
        "",
        &[
            ("", "line 1: found the end of the text, wanted `.version`"),
            (
                ".target sm_70",
                "line 1: found `.target`, wanted `.version`",
            ),
            (
                ".version 6\n",
                "line 1: found `6`, wanted a version, such as 6.0",
            ),
            (
                ".version 6.0\n.target sm_90a",
                "line 2: found `sm_90a`, wanted a target, such as sm_70",
            ),
            (
                ".version 6.0\n.target sm_70, texmode_unified",
                "line 2: found `texmode_unified`, wanted `debug`",
            ),
            (
                ".version 6.0\n.target sm_70\n.entry",
                "line 3: found `.entry`, wanted `.address_size`",
            ),
            (
                ".version 6.0\n.target sm_70\n.address_size 32",
                "line 3: found `32`, wanted 64",
            ),
        ],
    );
}

#[test]
fn invalid_tokens() {
    assert_errors(
        HEAD,
        "",
        &[
            ("?", "line 4: found `?`, wanted PTX"),
            ("\u{e9}", "line 4: found `\u{e9}`, wanted PTX"),
            (". entry", "line 4: found `.`, wanted PTX"),
            ("\n/* \n", "line 5: found `/*`, wanted a comment that ends"),
            (
                ".file 1 \"a\n\"",
                "line 4: found `\"`, wanted a text that ends",
            ),
            ("entry k", "line 4: found `entry`, wanted a directive"),
            (
                ".texref t;",
                "line 4: found `.texref`, wanted a variable or a kernel",
            ),
            (
                ".section .x { {",
                "line 4: found the end of the text, wanted `}`",
            ),
        ],
    );
}

#[test]
fn errors_in_variables() {
    assert_errors(
        HEAD,
        "",
        &[
            (
                ".global .align 3 .u32 a;",
                "line 4: found `3`, wanted a power of two of at most 4096",
            ),
            (
                ".global .v2 .f32 a;",
                "line 4: found `.v2`, wanted a type that memory holds",
            ),
            (
                ".global .pred a;",
                "line 4: found `.pred`, wanted a type that memory holds",
            ),
            (
                ".global .u32 a[0];",
                "line 4: found `0`, wanted a size of an array",
            ),
            (
                ".global .u32 a[4294967296][4294967296];",
                "line 4: found `4294967296`, wanted a size of an array",
            ),
            (
                ".global .u32 a[0x4000000000000000];",
                "line 4: found `a`, wanted a variable of less than 2^64 bytes",
            ),
            (
                ".global .u32 a[];",
                "line 4: found `a`, wanted a variable with a size",
            ),
            (
                ".global .u8 a = 256;",
                "line 4: found `256`, wanted a number that fits u8",
            ),
            (
                ".global .u8 a = -129;",
                "line 4: found `129`, wanted a number that fits u8",
            ),
            (
                ".global .f32 a = 1;",
                "line 4: found `1`, wanted a number of type f32",
            ),
            (
                ".global .u8 a[2] = {1, 2, 3};",
                "line 4: found `a`, wanted no more values than the variable has elements",
            ),
            (
                ".global .u64 a = {generic(b)};",
                "line 4: found `generic`, wanted a number",
            ),
            (
                ".shared .u32 a = 1;",
                "line 4: found `a`, wanted a variable without a first value",
            ),
            (
                ".shared .u32 a[];",
                "line 4: found `a`, wanted a variable with a size",
            ),
            (
                ".extern .global .u32 a;",
                "line 4: found `.global`, wanted `.shared` or `.func`",
            ),
            (
                ".extern .shared .u32 a[4];",
                "line 4: found `a`, wanted an external array without a size",
            ),
            (
                ".global .u32 a;\n.entry a() { ret; }",
                "line 5: `a` is declared already, on line 4",
            ),
            (
                ".global .u32 a.b;",
                "line 4: found `a.b`, wanted the name of a variable",
            ),
            (
                ".global .u32 a",
                "line 4: found the end of the text, wanted `;`",
            ),
        ],
    );
}

#[test]
fn errors_in_kernels_before_the_body() {
    assert_errors(
        HEAD,
        "",
        &[
            (
                ".entry k(.param .u64 a .param",
                "line 4: found `.param`, wanted `)`",
            ),
            (".entry k(.u64 a)", "line 4: found `.u64`, wanted `.param`"),
            (
                ".entry k(.param .u64 a, .param .u64 a)",
                "line 4: `a` is declared already, on line 4",
            ),
            (
                ".entry k(.param .b8 a[4353])",
                "line 4: found `a`, wanted parameters of 1 to 4352 bytes in all",
            ),
            (
                ".entry k(.param .u64 a[0x2000000000000001])",
                "line 4: found `a`, wanted parameters of 1 to 4352 bytes in all",
            ),
            (
                ".entry k() .maxntid 32, 33 {}",
                "line 4: found `.maxntid`, wanted 1 to 1024 threads",
            ),
            (
                ".entry k() .maxntid 0 {}",
                "line 4: found `.maxntid`, wanted 1 to 1024 threads",
            ),
            (
                ".entry k() .explicitcluster {}",
                "line 4: found `.explicitcluster`, wanted a bound of the kernel, or `{`",
            ),
            (".entry k();", "line 4: found `;`, wanted `{`"),
            (
                ".entry k() {} .entry\nk() {}",
                "line 5: `k` is declared already, on line 4",
            ),
            (
                ".entry k() { .shared .b8 a[49153]; }",
                "line 4: found `k`, wanted at most 49152 bytes of shared memory",
            ),
            (
                ".shared .b64 s[6144]; .entry k() { .shared .b8 a[1]; .reg .b64 d; mov.u64 d, s; }",
                "line 4: found `k`, wanted at most 49152 bytes of shared memory",
            ),
        ],
    );
}

#[test]
fn errors_in_kernel_bodies() {
    let head = format!("{HEAD}{KERNEL}");
    assert_errors(
        &head,
        "\n}",
        &[
            (
                "mov.u32 %r3, 1;",
                "line 5: no register or variable is named `%r3` here",
            ),
            (
                "mov.u32 %r01, 1;",
                "line 5: no register or variable is named `%r01` here",
            ),
            (
                "mov.u32 %r1, %clock;",
                "line 5: no register or variable is named `%clock` here",
            ),
            (
                "mov.u32 %r1, %tid;",
                "line 5: no register or variable is named `%tid` here",
            ),
            (
                "{ .reg .b32 t; }\nmov.u32 t, 1;",
                "line 6: no register or variable is named `t` here",
            ),
            (
                ".reg .b32 %r1;",
                "line 5: `%r1` is declared already, on line 4",
            ),
            (
                ".reg .b8 t;",
                "line 5: found `.b8`, wanted a type of a register, which has at least 16 bits",
            ),
            (
                ".reg .v4 t;",
                "line 5: found `.v4`, wanted a type of a register",
            ),
            (
                ".reg .b32 t<0>;",
                "line 5: found `0`, wanted a number of registers",
            ),
            ("bra L;", "line 5: no label is named `L` here"),
            ("bra p;", "line 5: no label is named `p` here"),
            ("{ L: ret; }\nbra L;", "line 6: no label is named `L` here"),
            ("L:\nL:", "line 6: `L` is declared already, on line 5"),
            (
                "a.b: ret;",
                "line 5: found `a.b`, wanted the name of a label",
            ),
            (
                "L: mov.u64 %r1, L;",
                "line 5: found `L`, wanted a register or a variable",
            ),
            ("@%r1 ret;", "line 5: found `%r1`, wanted a predicate"),
            ("@p ret;", "line 5: found `p`, wanted a register"),
            ("@%p1 {", "line 5: found `{`, wanted an instruction"),
            ("ret", "line 6: found `}`, wanted an operand"),
            ("mov.u32 %r1 %r2;", "line 5: found `%r2`, wanted `;`"),
            ("mov.u32 %r1, ;", "line 5: found `;`, wanted an operand"),
            (
                "mov.u32 %r1, !%r2;",
                "line 5: found `%r2`, wanted a predicate",
            ),
            (
                "mov.u32 %r1, 08;",
                "line 5: found `08`, wanted an integer of at most 64 bits",
            ),
            (
                "mov.f32 %r1, 0f3F80;",
                "line 5: found `0f3F80`, wanted 8 hexadecimal digits after 0f",
            ),
            ("ld.u32 %r1, [%r2;", "line 5: found `;`, wanted `]`"),
            (
                "ld.u32 %r1, [%tid.x];",
                "line 5: found `%tid.x`, wanted an address",
            ),
            (
                "ld.u32 %r1, [%r2+2147483648];",
                "line 5: found `2147483648`, wanted an offset of 32 bits",
            ),
            (
                "mov.b32 {%r1, {%r2}}, 1;",
                "line 5: found `{`, wanted an operand",
            ),
            (
                "shfl.b32 %r1|1, %r2;",
                "line 5: found `1`, wanted a register or `_`",
            ),
            ("call f;", "line 5: a call of a function: not supported"),
            (
                "{ .param .b64 a; }",
                "line 5: `.param` in a body, as calls of functions have it: not supported",
            ),
            (
                "mov.u64 %r1, k;",
                "line 5: the address of a kernel or a function: not supported",
            ),
            (
                ".branchtargets L;",
                "line 5: found `.branchtargets`, wanted an instruction, a declaration or `}`",
            ),
            (
                "{",
                "line 6: found the end of the text, wanted an instruction, a declaration or `}`",
            ),
        ],
    );
}

#[test]
fn a_message_is_one_short_line() {
    let message = error_of(&format!("{HEAD}{}", "x".repeat(5000)));
    assert!(message.len() < 120, "{message}");
    let error = Module::parse(&format!("{HEAD}\n\n?")).expect_err("no PTX");
    assert_eq!(error.line(), 6);
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let text = format!(
        "{HEAD}{KERNEL}{}{}",
        "{".repeat(100_000),
        "}".repeat(100_001)
    );
    assert!(Module::parse(&text).is_ok());
}
