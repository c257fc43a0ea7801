//! The model: a decoder-only transformer.

use crate::random::Random;
use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::VarMap;
use candle_nn::loss::cross_entropy;
use std::sync::PoisonError;

/// The sizes of a [`Transformer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of different tokens.
    pub vocabulary: usize,
    /// Number of tokens of a sequence.
    pub context: usize,
    /// Number of blocks of attention and feed-forward network.
    pub layers: usize,
    /// Number of attention heads per layer. It divides `width`.
    pub heads: usize,
    /// Number of elements of a token's vector.
    pub width: usize,
}

impl Shape {
    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        let Shape { width, .. } = *self;
        let layer = 12 * width * width + 2 * width;
        (2 * self.vocabulary + self.context + 1) * width + self.layers * layer
    }
}

/// A decoder-only transformer, as in Radford et al., "Language models are unsupervised multitask learners", 2019: with
/// learned positions and normalization before each part. It has RMS normalization, ReLU and no biases, which is faster.
/// It has no dropout, and the weights of the output are other ones than those of the tokens.
///
/// The parameters are variables of a [`VarMap`], so an optimizer finds them by name. They have one type; if it is not
/// `f32`, they are converted to `f32` for the computation, and their gradients are converted back.
#[derive(Clone)]
pub struct Transformer {
    shape: Shape,
    token: Var,
    position: Var,
    layers: Vec<Layer>,
    norm: Var,
    head: Var,
    /// 0 where a token may see another one, and -inf where that one comes later.
    mask: Tensor,
}

#[derive(Clone)]
struct Layer {
    attention_norm: Var,
    /// Queries, keys and values.
    qkv: Var,
    projection: Var,
    network_norm: Var,
    up: Var,
    down: Var,
}

impl Transformer {
    /// Returns a model whose initial parameters are drawn from a seed, and adds them to a map.
    ///
    /// The weights are normally distributed with a standard deviation of 0.02. The matrices whose results are added to
    /// the residual stream have 0.02 / sqrt(2 `layers`). The weights of the normalization are 1.
    ///
    /// # Errors
    /// If a size is 0, `heads` does not divide `width`, or the map has one of the names.
    pub fn new(varmap: &VarMap, shape: Shape, dtype: DType, seed: u64) -> Result<Self> {
        let Shape {
            vocabulary,
            context,
            layers,
            heads,
            width,
        } = shape;
        let smallest = [vocabulary, context, layers, heads, width]
            .into_iter()
            .min();
        ensure!(smallest > Some(0), "a size of the model is 0: {shape:?}");
        ensure!(
            width % heads == 0,
            "{heads} heads do not divide a width of {width}"
        );
        let mut new = NewVars {
            varmap,
            dtype,
            random: Random::new(seed, 0),
        };
        let residual = 0.02 / (2.0 * layers as f32).sqrt();
        let token = new.normal("token", (vocabulary, width), 0.02)?;
        let position = new.normal("position", (context, width), 0.02)?;
        let layers = (0..layers).map(|layer| {
            let name = |part: &str| format!("layer{layer}.{part}");
            Ok(Layer {
                attention_norm: new.ones(&name("attention_norm"), width)?,
                qkv: new.normal(&name("qkv"), (width, 3 * width), 0.02)?,
                projection: new.normal(&name("projection"), (width, width), residual)?,
                network_norm: new.ones(&name("network_norm"), width)?,
                up: new.normal(&name("up"), (width, 4 * width), 0.02)?,
                down: new.normal(&name("down"), (4 * width, width), residual)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let later = (0..context * context).map(|i| match i % context > i / context {
            true => f32::NEG_INFINITY,
            false => 0.0,
        });
        Ok(Transformer {
            shape,
            token,
            position,
            layers,
            norm: new.ones("norm", width)?,
            head: new.normal("head", (width, vocabulary), 0.02)?,
            mask: Tensor::from_iter(later, &Device::Cpu)?.reshape((context, context))?,
        })
    }

    /// Returns the sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns the logits of the token that follows each token, of shape `[sequences * length, vocabulary]`, for
    /// tokens of shape `[sequences, length]`.
    ///
    /// # Errors
    /// If `length` is larger than `context`, or a token is not in the vocabulary.
    pub fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        let (sequences, length) = tokens.dims2()?;
        let context = self.shape.context;
        ensure!(
            length <= context,
            "{length} tokens, where the model has a context of {context}"
        );
        let token = float(&self.token)?.index_select(&tokens.flatten_all()?, 0)?;
        let position = float(&self.position)?.narrow(0, 0, length)?;
        let mask = self.mask.narrow(0, 0, length)?.narrow(1, 0, length)?;
        let shape = (sequences, length, self.shape.width);
        let mut x = token.reshape(shape)?.broadcast_add(&position)?;
        x = x.reshape((sequences * length, self.shape.width))?;
        for layer in &self.layers {
            let y = normalize(&x, &layer.attention_norm)?;
            x = (x + self.attend(&y, layer, &mask, sequences)?)?;
            let y = normalize(&x, &layer.network_norm)?;
            let hidden = y.matmul(&float(&layer.up)?)?.relu()?;
            x = (x + hidden.matmul(&float(&layer.down)?)?)?;
        }
        Ok(normalize(&x, &self.norm)?.matmul(&float(&self.head)?)?)
    }

    /// Returns the mean cross-entropy, in nats per token, of the tokens that follow.
    ///
    /// # Errors
    /// As [`logits`](Transformer::logits), and if the shapes of the two differ.
    pub fn loss(&self, tokens: &Tensor, next: &Tensor) -> Result<Tensor> {
        Ok(cross_entropy(&self.logits(tokens)?, &next.flatten_all()?)?)
    }

    /// Causal self-attention. `x` has shape `[sequences * length, width]`.
    fn attend(&self, x: &Tensor, layer: &Layer, mask: &Tensor, sequences: usize) -> Result<Tensor> {
        let Shape { heads, width, .. } = self.shape;
        let length = x.dim(0)? / sequences;
        let size = width / heads;
        let qkv = x.matmul(&float(&layer.qkv)?)?;
        let part = |index: usize| -> Result<Tensor> {
            let part = qkv.narrow(1, index * width, width)?.contiguous()?;
            let part = part.reshape((sequences, length, heads, size))?;
            Ok(part.transpose(1, 2)?.contiguous()?)
        };
        let (queries, keys, values) = (part(0)?, part(1)?, part(2)?);
        let scores = (queries * (size as f64).powf(-0.5))?.matmul(&keys.transpose(2, 3)?)?;
        let shares = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
        let mixed = shares.matmul(&values)?.transpose(1, 2)?.contiguous()?;
        let mixed = mixed.reshape((sequences * length, width))?;
        Ok(mixed.matmul(&float(&layer.projection)?)?)
    }
}

/// Returns the elements in `f32`.
fn float(var: &Var) -> Result<Tensor> {
    Ok(var.to_dtype(DType::F32)?)
}

/// RMS normalization (Zhang and Sennrich, "Root mean square layer normalization", 2019).
fn normalize(x: &Tensor, weight: &Var) -> Result<Tensor> {
    Ok(candle_nn::ops::rms_norm_slow(x, &float(weight)?, 1e-5)?)
}

/// Adds variables to a map.
struct NewVars<'v> {
    varmap: &'v VarMap,
    dtype: DType,
    random: Random,
}

impl NewVars<'_> {
    fn normal(&mut self, name: &str, shape: (usize, usize), deviation: f32) -> Result<Var> {
        let elements = (0..shape.0 * shape.1).map(|_| deviation * self.random.normal());
        let tensor = Tensor::from_iter(elements, &Device::Cpu)?.reshape(shape)?;
        self.add(name, &tensor)
    }

    fn ones(&mut self, name: &str, len: usize) -> Result<Var> {
        self.add(name, &Tensor::ones(len, DType::F32, &Device::Cpu)?)
    }

    fn add(&mut self, name: &str, tensor: &Tensor) -> Result<Var> {
        let var = Var::from_tensor(&tensor.to_dtype(self.dtype)?)?;
        let mut map = self
            .varmap
            .data()
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(!map.contains_key(name), "the map has a variable `{name}`");
        map.insert(name.to_owned(), var.clone());
        Ok(var)
    }
}
