//! Tests that every use of a variable in another thread fails while its vector is taken, and reads no memory.

use super::Lent;
use crate::{Error, LionCandle};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::{Init, Optimizer, VarMap, ops};
use lion::Lion;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The shape of the variables: several rows, and whole blocks of a quantized type in each.
const SHAPE: (usize, usize) = (4, 64);

/// Two variables whose vectors are taken, and tensors of which nothing is taken.
struct Operands {
    w: Var,
    v: Var,
    /// Of the shape and type of the variables.
    real: Tensor,
    /// Indices of rows, in the shape of the variables.
    ids: Tensor,
}

/// An operation that reads or writes elements of `w`.
type Operation = fn(&Operands) -> Result<()>;
type OfView = fn(&Tensor) -> Result<Tensor>;
type Use = dyn Fn(&Operands) -> Result<()> + Sync;

/// Drops what an operation returns.
fn done<T>(result: Result<T>) -> Result<()> {
    result.map(|_| ())
}

/// Views of `w` of each kind that candle reads by another loop: all of it, one block, blocks at equal distances, and
/// single elements.
fn views(w: &Tensor) -> Result<[Tensor; 5]> {
    Ok([
        w.clone(),
        w.narrow(0, 1, 2)?,
        w.narrow(1, 3, 5)?,
        w.t()?,
        w.reshape((2, 2, 64))?.transpose(0, 1)?.narrow(2, 1, 3)?,
    ])
}

/// Returns `w` as a batch of two images of two channels.
fn images(w: &Tensor) -> Result<Tensor> {
    w.reshape((2, 2, 8, 8))
}

/// Returns the attention of operands as `batch` sequences of two heads, with the kernel for their type.
fn attention(batch: usize, [q, k, v]: [&Tensor; 3], mask: AttnMask) -> Result<()> {
    let heads = |it: &Tensor| it.reshape((batch, 4 / batch, 2, 32));
    let (q, k, v) = (heads(q)?, heads(k)?, heads(v)?);
    done(match q.dtype() {
        DType::F16 => flash_attn::<lion::f16>(&q, &k, &v, 1.0, mask, None, None),
        DType::BF16 => flash_attn::<lion::bf16>(&q, &k, &v, 1.0, mask, None, None),
        _ => flash_attn::<f32>(&q, &k, &v, 1.0, mask, None, None),
    })
}

/// Operations on a view.
const ELEMENTS: &[(&str, OfView)] = &[
    ("to_dtype f64", |w| w.to_dtype(DType::F64)),
    ("to_dtype u8", |w| w.to_dtype(DType::U8)),
    ("to_dtype u32", |w| w.to_dtype(DType::U32)),
    ("affine", |w| w.affine(2.0, 1.0)),
    ("powf", |w| w.powf(2.0)),
    ("elu", |w| w.elu(1.0)),
    ("exp", Tensor::exp),
    ("relu", Tensor::relu),
    ("neg", Tensor::neg),
    ("sigmoid", ops::sigmoid),
    ("silu", ops::silu),
    ("sum_all", Tensor::sum_all),
    ("sum", |w| w.sum(0)),
    ("mean", |w| w.mean(D::Minus1)),
    ("max", |w| w.max(D::Minus1)),
    ("min", |w| w.min(0)),
    ("argmax", |w| w.argmax(0)),
    ("argmin", |w| w.argmin(D::Minus1)),
    ("add to itself", |w| w + w),
    ("broadcast_mul", |w| {
        w.broadcast_mul(&Tensor::ones(1, w.dtype(), w.device())?)
    }),
    ("where_cond", |w| {
        let all = Tensor::ones(w.shape(), DType::U8, w.device())?;
        all.where_cond(w, w)
    }),
    ("eq", |w| w.eq(w)),
    ("copy, then to_dtype", |w| w.copy()?.to_dtype(DType::F64)),
    ("force_contiguous", Tensor::force_contiguous),
];

/// Operations that copy elements.
const COPIES: &[(&str, Operation)] = &[
    ("to_vec2 f32", |o| done(o.w.to_vec2::<f32>())),
    ("to_vec2 f16", |o| done(o.w.to_vec2::<lion::f16>())),
    ("to_vec2 bf16", |o| done(o.w.to_vec2::<lion::bf16>())),
    ("to_vec2 u8", |o| done(o.w.to_vec2::<u8>())),
    ("to_vec2, strided", |o| done(o.w.t()?.to_vec2::<f32>())),
    ("to_scalar", |o| {
        done(o.w.get(1)?.get(2)?.to_scalar::<f32>())
    }),
    ("contiguous", |o| done(o.w.t()?.contiguous())),
    ("flatten, strided", |o| done(o.w.t()?.flatten_all())),
    // It returns a tensor, but a tensor that is as empty as the variable.
    ("copy", |o| done(o.w.copy()?.to_vec2::<f32>())),
    ("cat", |o| done(Tensor::cat(&[&*o.w, &o.real], 0))),
    ("cat, last", |o| done(Tensor::cat(&[&o.real, &*o.w], 1))),
    ("cat of both", |o| done(Tensor::cat(&[&*o.w, &*o.v], 1))),
    ("cat, strided", |o| {
        done(Tensor::cat(&[o.w.t()?, o.v.t()?], 1))
    }),
    ("stack", |o| done(Tensor::stack(&[&*o.w, &*o.v], 0))),
    ("gather", |o| done(o.w.gather(&o.ids, 0))),
    ("index_select", |o| {
        done(o.w.index_select(&o.ids.get(0)?, 0))
    }),
    ("embedding", |o| done(o.w.embedding(&o.ids.get(0)?))),
    ("where_cond", |o| {
        done(o.ids.where_cond(o.w.as_tensor(), &o.real))
    }),
    ("where_cond of both", |o| {
        done(o.ids.where_cond(o.w.as_tensor(), o.v.as_tensor()))
    }),
    ("where_cond by it", |o| {
        done(o.w.where_cond(&o.real, &o.real))
    }),
    ("sort", |o| done(o.w.sort_last_dim(true))),
    ("upsample_nearest2d", |o| {
        done(images(&o.w)?.upsample_nearest2d(16, 16))
    }),
    ("upsample_bilinear2d", |o| {
        done(images(&o.w)?.upsample_bilinear2d(16, 16, false))
    }),
    ("upsample_bilinear2d, same", |o| {
        done(images(&o.w)?.upsample_bilinear2d(8, 8, false))
    }),
    ("write_bytes", |o| o.w.write_bytes(&mut Vec::new())),
    ("save_safetensors", |o| {
        let folder = tempfile::tempdir()?;
        o.w.save_safetensors("w", folder.path().join("w.safetensors"))
    }),
    ("safetensors of a view", |o| {
        let folder = tempfile::tempdir()?;
        let tensors = HashMap::from([("w", o.w.t()?)]);
        candle_core::safetensors::save(&tensors, folder.path().join("w.safetensors"))
    }),
    ("quantize", |o| {
        done(QTensor::quantize(&o.w, GgmlDType::Q8_0))
    }),
];

/// Operations that combine elements.
const SUMS: &[(&str, Operation)] = &[
    ("add", |o| done(&o.real + &*o.w)),
    ("le", |o| done(o.real.le(o.w.as_tensor()))),
    ("broadcast_div", |o| {
        done(o.real.broadcast_div(&o.w.narrow(0, 0, 1)?))
    }),
    ("matmul", |o| done(o.w.matmul(&o.real.t()?))),
    ("matmul with it", |o| done(o.real.matmul(&o.w.t()?))),
    ("matmul of both", |o| done(o.w.matmul(&o.v.t()?))),
    ("conv1d", |o| {
        let kernel = o.real.reshape((8, 2, 16))?;
        done(o.w.reshape((2, 2, 64))?.conv1d(&kernel, 0, 1, 1, 1))
    }),
    ("conv1d with it", |o| {
        let kernel = o.w.reshape((8, 2, 16))?;
        done(o.real.reshape((2, 2, 64))?.conv1d(&kernel, 0, 1, 1, 1))
    }),
    ("conv1d with it, strided", |o| {
        let kernel = o.w.reshape((2, 8, 16))?.transpose(0, 1)?;
        done(o.real.reshape((2, 2, 64))?.conv1d(&kernel, 0, 1, 1, 1))
    }),
    ("conv_transpose1d", |o| {
        let (x, kernel) = (o.w.reshape((2, 2, 64))?, o.v.reshape((2, 8, 16))?);
        done(x.conv_transpose1d(&kernel, 0, 0, 1, 1, 1))
    }),
    ("conv_transpose1d, dilated", |o| {
        let (x, kernel) = (o.w.reshape((2, 2, 64))?, o.v.reshape((2, 8, 16))?);
        done(x.conv_transpose1d(&kernel, 0, 0, 1, 2, 1))
    }),
    ("conv2d", |o| {
        let kernel = o.real.reshape((8, 2, 4, 4))?;
        done(images(&o.w)?.conv2d(&kernel, 0, 1, 1, 1))
    }),
    ("conv2d of both", |o| {
        let kernel = o.v.reshape((8, 2, 4, 4))?;
        done(images(&o.w)?.conv2d(&kernel, 0, 1, 1, 1))
    }),
    ("conv_transpose2d", |o| {
        let kernel = o.v.reshape((2, 8, 4, 4))?;
        done(images(&o.w)?.conv_transpose2d(&kernel, 0, 0, 1, 1))
    }),
    ("avg_pool2d", |o| done(images(&o.w)?.avg_pool2d(2))),
    ("max_pool2d", |o| done(images(&o.w)?.max_pool2d(2))),
    ("softmax", |o| done(ops::softmax(&o.w, 1))),
    ("softmax_last_dim", |o| done(ops::softmax_last_dim(&o.w))),
    ("rms_norm", |o| {
        done(ops::rms_norm(&o.w, &o.real.get(0)?, 1e-5))
    }),
    ("rms_norm by it", |o| {
        done(ops::rms_norm(&o.real, &o.w.get(0)?, 1e-5))
    }),
    ("layer_norm", |o| {
        let (alpha, beta) = (o.v.get(0)?, o.v.get(1)?);
        done(ops::layer_norm(&o.w, &alpha, &beta, 1e-5))
    }),
    ("rope", |o| {
        let halves = o.v.narrow(1, 0, 32)?.contiguous();
        let cos = halves.or_else(|_| o.real.narrow(1, 0, 32)?.contiguous())?;
        done(candle_nn::rotary_emb::rope(
            &o.w.reshape((1, 1, 4, 64))?,
            &cos,
            &cos,
        ))
    }),
    ("attention", |o| {
        attention(1, [&o.w, &o.real, &o.real], AttnMask::None)
    }),
    ("attention with its keys", |o| {
        attention(1, [&o.real, &o.w, &o.real], AttnMask::None)
    }),
    ("attention with its values", |o| {
        attention(1, [&o.real, &o.real, &o.w], AttnMask::None)
    }),
    ("attention by its mask", |o| {
        let mask = AttnMask::Mask(o.w.narrow(1, 0, 4)?);
        attention(1, [&o.real; 3], mask)
    }),
    ("causal attention", |o| {
        attention(1, [&o.w, &o.v, &o.real], AttnMask::causal())
    }),
    ("causal attention with its values", |o| {
        attention(1, [&o.real, &o.real, &o.w], AttnMask::causal())
    }),
    ("attention of a batch", |o| {
        attention(2, [&o.w, &o.real, &o.real], AttnMask::causal())
    }),
    ("attention of a batch with its values", |o| {
        attention(2, [&o.real, &o.real, &o.w], AttnMask::None)
    }),
    ("quantized matmul", |o| {
        let real = o.real.to_dtype(DType::F32)?;
        let weight = QTensor::quantize(&real, GgmlDType::Q8_0)?;
        done(QMatMul::from_qtensor(weight)?.forward(&o.w))
    }),
];

/// Operations that write elements, of a variable or from one.
const WRITES: &[(&str, Operation)] = &[
    ("set", |o| o.w.set(&o.real)),
    ("set from strided", |o| {
        o.w.set(&o.real.t()?.contiguous()?.reshape((64, 4))?.t()?)
    }),
    ("set from it", |o| Var::from_tensor(&o.real)?.set(&o.w)),
    ("set of both", |o| o.w.set(&o.v)),
    ("set of both, strided", |o| {
        o.w.set(&o.v.reshape((64, 4))?.t()?)
    }),
    ("zero_set", |o| o.w.zero_set()),
    ("zero_set, strided", |o| o.w.t()?.zero_set()),
    ("slice_set", |o| o.w.slice_set(&o.real, 0, 0)),
    ("slice_set from it", |o| {
        o.real.ones_like()?.slice_set(&o.w, 0, 0)
    }),
    ("slice_set of both", |o| o.w.slice_set(&o.v, 0, 0)),
    ("scatter_set", |o| o.w.scatter_set(&o.ids, &o.real, 0)),
    ("scatter_add", |o| done(o.real.scatter_add(&o.ids, &o.w, 0))),
    ("scatter_add_set of both", |o| {
        o.w.scatter_add_set(&o.ids, &o.v, 0)
    }),
    ("index_add", |o| {
        let ids = o.ids.get(0)?.narrow(0, 0, 4)?;
        done(o.real.index_add(&ids, &o.w, 0))
    }),
    ("index_add to it", |o| {
        let ids = o.ids.get(0)?.narrow(0, 0, 4)?;
        done(o.w.index_add(&ids, &o.real, 0))
    }),
];

/// Operations that candle refuses for all variables of `f32`.
const OF_OTHER_TYPES: &[&str] = &[
    "to_vec2 f16",
    "to_vec2 bf16",
    "to_vec2 u8",
    "where_cond by it",
];

#[test]
fn every_use_of_a_variable_during_a_step_fails() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let var = || Var::ones(SHAPE, dtype, &Device::Cpu).unwrap();
        let ids: Vec<u32> = (0..4 * 64).map(|i| i % 4).collect();
        let operands = Operands {
            w: var(),
            v: var(),
            real: Tensor::ones(SHAPE, dtype, &Device::Cpu).unwrap(),
            ids: Tensor::from_vec(ids, SHAPE, &Device::Cpu).unwrap(),
        };
        let mut optimizer = LionCandle::empty(Lion::builder()).unwrap();
        optimizer.add("w", &operands.w).unwrap();
        optimizer.add("v", &operands.v).unwrap();
        let mut operations = Vec::new();
        for (name, operation) in ELEMENTS {
            for view in views(&operands.w).unwrap() {
                let of = format!("{name} of {:?} by {:?}", view.dims(), view.stride());
                let run = move |_: &Operands| done(operation(&view));
                operations.push((of, Box::new(run) as Box<Use>));
            }
        }
        for (name, operation) in [COPIES, SUMS, WRITES].concat() {
            operations.push((name.to_owned(), Box::new(operation)));
        }

        // As in the middle of a step.
        let lent = Lent::take(&optimizer.variables).unwrap();
        let uses = || {
            for (name, operation) in &operations {
                let outcome = catch_unwind(AssertUnwindSafe(|| operation(&operands)));
                // An error or a panic.
                assert!(
                    !matches!(outcome, Ok(Ok(()))),
                    "{name} of {dtype:?} succeeds"
                );
            }
        };
        let end = std::thread::scope(|scope| scope.spawn(uses).join());
        drop(lent);
        if let Err(panic) = end {
            std::panic::resume_unwind(panic);
        }

        // Nothing has been written, and the same operations succeed, so that each was refused because of the step.
        for var in [&operands.w, &operands.v] {
            let ones = var.to_dtype(DType::F32).unwrap();
            assert_eq!(ones.to_vec2::<f32>().unwrap(), [[1.0; 64]; 4]);
        }
        // candle does not have all of them for the shorter types.
        if dtype == DType::F32 {
            for (name, operation) in &operations {
                let result = operation(&operands);
                let fails = OF_OTHER_TYPES.contains(&&**name);
                assert_eq!(result.is_err(), fails, "{name}: {result:?}");
            }
        }
    }
}

#[test]
fn a_printed_variable_shows_no_elements_during_a_step() {
    // candle prints those of 1,000 elements and more in another way, and those of one axis.
    let shapes: [&[usize]; 4] = [&[], &[5], &[4, 64], &[40, 50]];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for shape in shapes {
            let full = Tensor::full(0.8125f32, shape, &Device::Cpu).unwrap();
            let var = Var::from_tensor(&full.to_dtype(dtype).unwrap()).unwrap();
            let mut optimizer = LionCandle::empty(Lion::builder()).unwrap();
            optimizer.add("w", &var).unwrap();
            let print = || {
                [
                    format!("{:?}", var.as_tensor()),
                    format!("{}", var.as_tensor()),
                ]
            };
            let before = print();
            assert!(before[1].contains("0.8125"), "{}", before[1]);
            let lent = Lent::take(&optimizer.variables).unwrap();
            for text in print() {
                assert!(!text.contains("0.8125"), "{text}");
                // Nor numbers from other memory. The text of the largest is an error of candle, which may have dots.
                assert!(shape == [40, 50] || !text.contains('.'), "{text}");
            }
            drop(lent);
            assert_eq!(print(), before);
        }
    }
}

/// The lock of the map is of the standard library and not of candle. The documentation of the crate tells what to do.
#[test]
fn a_map_that_is_saved_during_a_step_is_poisoned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map.safetensors");
    let varmap = VarMap::new();
    let var = varmap.get(2, "w", Init::Const(1.0), DType::F32, &Device::Cpu);
    let w = var.unwrap();
    let optimizer = LionCandle::from_varmap(&varmap, Lion::builder()).unwrap();
    let save = || catch_unwind(AssertUnwindSafe(|| varmap.save(&path)));
    let all_vars = || catch_unwind(AssertUnwindSafe(|| varmap.all_vars().len()));

    let lent = Lent::take(&optimizer.variables).unwrap();
    let of_optimizer = optimizer.save(folder.path().join("run.lion"));
    assert!(matches!(of_optimizer, Err(Error::InUse { .. })));
    assert_eq!(all_vars().unwrap(), 1);
    let saved = std::thread::scope(|scope| scope.spawn(save).join().unwrap());
    assert!(saved.is_err());
    drop(lent);

    assert!(all_vars().is_err());
    assert!(save().is_err());
    optimizer.save(folder.path().join("run.lion")).unwrap();
    LionCandle::from_varmap(&varmap, Lion::builder()).unwrap();
    varmap.data().clear_poison();
    assert_eq!(all_vars().unwrap(), 1);
    save().unwrap().unwrap();
    assert_eq!(w.to_vec1::<f32>().unwrap(), [1.0, 1.0]);
}
