//! Parses PTX as compilers write it.

use cuda_emulator::ptx::{
    Axis, Base, Guard, Kernel, LabelId, Module, Operand, RegisterId, Special, Symbol, Type,
};

const HEAD: &str = ".version 6.0\n.target sm_70\n.address_size 64\n";

fn module(text: &str) -> Module {
    Module::parse(&format!("{HEAD}{text}")).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Parses a kernel with this body after shared declarations.
fn kernel(body: &str) -> Kernel {
    let text = format!(
        ".visible .entry k(.param .u64 p) {{\n.reg .pred %p<4>;\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n{body}\n}}"
    );
    module(&text).bodies()[0].clone()
}

/// Parses a body with a single instruction, and returns its operands.
fn operands(instruction: &str) -> Vec<Operand> {
    let kernel = kernel(instruction);
    assert_eq!(kernel.body.len(), 1);
    kernel.body[0].operands.clone()
}

fn register(number: u32) -> Operand {
    Operand::Register(RegisterId(number))
}

#[test]
fn header_is_parsed() {
    let module = Module::parse(
        "// made by hand\n.version 8.0\n.target sm_90, debug /* not sm_90a */\n.address_size 64",
    )
    .expect("a module without kernels");
    assert_eq!(module.version(), (8, 0));
    assert_eq!(module.target(), 90);
    assert_eq!(module.address_size(), 64);
    assert_eq!(module.kernels().count(), 0);
}

#[test]
fn kernels_of_this_project_are_parsed() {
    let text = include_str!("../../../lion-cuda/kernels/ptx/bf16_bf16.ptx");
    let module = Module::parse(text).expect("PTX");
    assert_eq!(
        module.kernels().count(),
        text.matches(".visible .entry").count()
    );
    let codebook = &module.globals()[0];
    assert_eq!(
        (&*codebook.name, codebook.bytes, codebook.align),
        ("CODEBOOK", 1024, 4)
    );
    // The bytes of the first entry are 51, 51, 126 and 191, and the last entry is 1.
    assert_eq!(codebook.initial[..4], 0xBF7E_3333_u32.to_le_bytes());
    assert_eq!(codebook.initial[1020..], 1_f32.to_le_bytes());
    // Everything that ends with a semicolon is an instruction or one of these directives.
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n")
        .collect();
    let directives = [".reg ", ".pragma ", "\n.global ", "\n.shared "];
    let directives: usize = directives
        .iter()
        .map(|directive| code.matches(directive).count())
        .sum();
    let parsed: usize = module.bodies().iter().map(|kernel| kernel.body.len()).sum();
    assert_eq!(parsed, code.matches(';').count() - directives);
    for kernel in module.bodies() {
        assert_eq!(kernel.max_threads, Some(256), "{}", kernel.name);
        let first = &kernel.body[0];
        assert_eq!(first.name(), "ld");
        let line = text.lines().nth(first.line as usize - 1);
        let line = line.expect("a line of the text");
        assert!(line.contains(&*first.opcode), "{line}");
    }
}

#[test]
fn parameters_are_aligned() {
    let module = module(
        ".entry k(.param .u8 a, .param .u64 b, .param .align 16 .b8 c[24], .param .f32 d[3],
         .param .u64 .ptr .global .align 32 e) { ret; }",
    );
    let params: Vec<_> = module.bodies()[0]
        .params
        .iter()
        .map(|param| (&*param.name, param.offset, param.bytes, param.align))
        .collect();
    assert_eq!(
        params,
        [
            ("a", 0, 1, 1),
            ("b", 8, 8, 8),
            ("c", 16, 24, 16),
            ("d", 40, 12, 4),
            ("e", 56, 8, 8)
        ]
    );
}

#[test]
fn launch_bounds_are_parsed() {
    let module = module(
        ".entry a() .maxntid 8, 4 .minnctapersm 2 { ret; }
         .weak .entry b .reqntid 32, 2, 1 { ret; }",
    );
    let [a, b] = module.bodies() else {
        panic!("two kernels");
    };
    assert_eq!((a.max_threads, a.required_threads), (Some(32), None));
    assert_eq!(
        (b.max_threads, b.required_threads),
        (None, Some([32, 2, 1]))
    );
}

#[test]
fn initializers_of_variables_are_parsed() {
    let module = module(
        ".visible .global .align 4 .u32 word = 7;
         .const .f32 one = 0f3F800000;
         .global .align 8 .b16 halves[4] = {1, -1, 0xfffe};
         .global .f64 counted[] = {1.0, 0d4000000000000000};
         .global .align 16 .b8 zero[32][2];",
    );
    let globals = module.globals();
    let shapes: Vec<_> = globals
        .iter()
        .map(|global| (&*global.name, global.constant, global.align, global.bytes))
        .collect();
    assert_eq!(
        shapes,
        [
            ("word", false, 4, 4),
            ("one", true, 4, 4),
            ("halves", false, 8, 8),
            ("counted", false, 8, 16),
            ("zero", false, 16, 64)
        ]
    );
    assert_eq!(globals[0].initial, 7_u32.to_le_bytes());
    assert_eq!(globals[1].initial, 1_f32.to_le_bytes());
    assert_eq!(globals[2].initial, [1, 0, 255, 255, 254, 255]);
    assert_eq!(
        globals[3].initial,
        [1_f64.to_le_bytes(), 2_f64.to_le_bytes()].concat()
    );
    assert!(globals[4].initial.is_empty());
}

#[test]
fn kernel_has_the_shared_variables_that_it_uses() {
    let module = module(
        ".shared .align 4 .b8 unused[4];
         .shared .align 8 .b8 table[1024];
         .extern .shared .align 16 .b8 rest[];
         .entry k() { .reg .b64 %rd<3>; .shared .f32 own; .local .align 16 .b8 stack[32];
           mov.u64 %rd0, own; mov.u64 %rd1, rest; mov.u64 %rd2, table; mov.u64 %rd2, table+4;
           st.local.u64 [stack+8], %rd2; }",
    );
    let kernel = &module.bodies()[0];
    let shared: Vec<_> = kernel
        .shared
        .iter()
        .map(|variable| {
            (
                &*variable.name,
                variable.align,
                variable.bytes,
                variable.dynamic,
            )
        })
        .collect();
    assert_eq!(
        shared,
        [
            ("own", 4, 4, false),
            ("rest", 16, 0, true),
            ("table", 8, 1024, false)
        ]
    );
    assert_eq!((kernel.local.len(), kernel.local[0].bytes), (1, 32));
    let second = |index: usize| kernel.body[index].operands[1].clone();
    assert_eq!(second(0), Operand::Symbol(Symbol::Shared(0), 0));
    assert_eq!(second(2), Operand::Symbol(Symbol::Shared(2), 0));
    assert_eq!(second(3), Operand::Symbol(Symbol::Shared(2), 4));
    assert_eq!(
        kernel.body[4].operands[0],
        Operand::Address(Base::Symbol(Symbol::Local(0)), 8)
    );
}

#[test]
fn operands_of_every_kind_are_parsed() {
    assert_eq!(
        operands("add.s32 %r5, %r6, -1;"),
        [register(0), register(1), Operand::Integer(-1)]
    );
    assert_eq!(
        operands("mov.u32 %r1, %tid.y;")[1],
        Operand::Special(Special::Tid(Axis::Y))
    );
    assert_eq!(operands("mov.u32 %r1, WARP_SZ;")[1], Operand::Integer(32));
    assert_eq!(
        operands("fma.rn.f32 %r1, 0f40000000, 2.0, %r1;")[1..3],
        [
            Operand::F32(0x4000_0000),
            Operand::F64(0x4000_0000_0000_0000)
        ]
    );
    assert_eq!(
        operands("ld.global.v2.u32 {%r1, _}, [%rd1+-8];"),
        [
            Operand::Vector(vec![register(0), Operand::Sink]),
            Operand::Address(Base::Register(RegisterId(1)), -8)
        ]
    );
    assert_eq!(
        operands("ld.param.u64 %rd1, [p];")[1],
        Operand::Address(Base::Symbol(Symbol::Param(0)), 0)
    );
    assert_eq!(
        operands("ld.shared.u32 %r1, [16];")[1],
        Operand::Address(Base::Absolute, 16)
    );
    assert_eq!(
        operands("shfl.sync.down.b32 %r1|%p1, %r2, 16, 31, -1;")[0],
        Operand::Pair(Some(RegisterId(0)), Some(RegisterId(1)))
    );
    assert_eq!(
        operands("setp.lt.and.u32 _|%p1, %r2, 1, !%p2;"),
        [
            Operand::Pair(None, Some(RegisterId(0))),
            register(1),
            Operand::Integer(1),
            Operand::Not(RegisterId(2))
        ]
    );
    assert_eq!(operands("ret;"), []);
}

#[test]
fn opcodes_and_guards_are_parsed() {
    let kernel =
        kernel("@%p1 bra END;\n@!%p2 ld.global.nc.v4.u32 {%r1,%r2,%r3,%r4}, [%rd1];\nEND:\nret;");
    let guards: Vec<_> = kernel.body.iter().map(|at| at.guard).collect();
    let guard = |register, negated| {
        let register = RegisterId(register);
        Some(Guard { register, negated })
    };
    assert_eq!(guards, [guard(0, false), guard(1, true), None]);
    let load = &kernel.body[1];
    assert_eq!(&*load.opcode, "ld.global.nc.v4.u32");
    assert_eq!(load.name(), "ld");
    assert_eq!(
        load.modifiers().collect::<Vec<_>>(),
        ["global", "nc", "v4", "u32"]
    );
    // The header has three lines, and four more precede the body.
    assert_eq!(load.line, 3 + 4 + 2);
    assert_eq!(kernel.registers[0].ty, Type::Pred);
    assert_eq!(&*kernel.registers[0].name, "%p1");
}

#[test]
fn labels_belong_to_their_scope() {
    let kernel = kernel(
        "L: { .reg .b32 t; mov.u32 t, 1; bra L; L: add.u32 t, t, 1; { bra L; } }
         { .reg .b64 t; mov.u64 t, 2; bra L; }
         bra M; M:",
    );
    let target = |index: usize| match kernel.body[index].operands[..] {
        [Operand::Label(LabelId(label))] => kernel.labels[label as usize].target,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(target(1), 2, "the inner one, further down");
    assert_eq!(target(3), 2, "from a scope in it");
    assert_eq!(target(5), 0, "the outer one");
    assert_eq!(target(6), 7, "behind the last instruction");
    let types: Vec<_> = kernel
        .registers
        .iter()
        .map(|register| register.ty)
        .collect();
    assert_eq!(types, [Type::B32, Type::B64], "two registers of one name");
}

#[test]
fn debug_directives_and_pragmas_are_ignored() {
    let module = module(
        ".file 1 \"lion.cu\"
         .extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
         .func helper(.reg .u32 a) { { trap; } }
         .entry k() .pragma \"nounroll\"; { .loc 1 20 5, function_name $L_1, inlined_at 1 2 3
           .pragma \"a\", \"b\";
           ret; // the end
         }
         .section .debug_str { a: .b8 1, 2 \n b: .b8 3 }",
    );
    assert_eq!(module.kernels().collect::<Vec<_>>(), ["k"]);
    assert_eq!(module.bodies()[0].body.len(), 1);
}
