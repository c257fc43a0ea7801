//! A network of dense layers with ReLU between them: forward pass, loss, and backward pass.

use crate::random::Random;
use lion::tensor::{GradRef, IntoGrad, IntoParam, ParamMut};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip};

/// A dense layer, or the gradients of one.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// `[inputs, outputs]`.
    pub(crate) weight: Array2<f32>,
    /// `[outputs]`.
    pub(crate) bias: Array1<f32>,
}

/// The layers in order, or their gradients.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) layers: Vec<Layer>,
}

impl Network {
    /// Returns a network with the initial weights of He et al. (arXiv:1502.01852) and biases of 0.
    pub(crate) fn new(sizes: &[usize], random: &mut Random) -> Self {
        let layers = sizes.windows(2).map(|size| {
            let deviation = (2.0 / size[0] as f32).sqrt();
            Layer {
                weight: Array2::from_shape_simple_fn((size[0], size[1]), || {
                    deviation * random.normal()
                }),
                bias: Array1::zeros(size[1]),
            }
        });
        Network {
            layers: layers.collect(),
        }
    }

    /// Returns gradients of 0 with the shapes of this network.
    pub(crate) fn gradients(&self) -> Network {
        let layers = self.layers.iter().map(|layer| Layer {
            weight: Array2::zeros(layer.weight.raw_dim()),
            bias: Array1::zeros(layer.bias.raw_dim()),
        });
        Network {
            layers: layers.collect(),
        }
    }

    /// Returns the number of parameters.
    pub(crate) fn len(&self) -> usize {
        let of_layer = |layer: &Layer| layer.weight.len() + layer.bias.len();
        self.layers.iter().map(of_layer).sum()
    }

    /// Returns an iterator over all parameters.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &f32> {
        self.layers
            .iter()
            .flat_map(|layer| layer.weight.iter().chain(&layer.bias))
    }

    /// Returns the arrays with their names.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = (String, Option<GradRef<'_>>)> {
        (1..).zip(&self.layers).flat_map(|(number, layer)| {
            [
                (format!("layer{number}.weight"), layer.weight.into_grad()),
                (format!("layer{number}.bias"), layer.bias.into_grad()),
            ]
        })
    }

    /// Returns the arrays with their names, to be written.
    pub(crate) fn arrays_mut(&mut self) -> impl Iterator<Item = (String, ParamMut<'_>)> {
        (1..).zip(&mut self.layers).flat_map(|(number, layer)| {
            let weight = layer.weight.view_mut().into_param();
            let bias = layer.bias.view_mut().into_param();
            [
                (format!("layer{number}.weight"), weight),
                (format!("layer{number}.bias"), bias),
            ]
        })
    }

    /// Returns a checksum of the bits of all parameters: 64-bit FNV-1a.
    pub(crate) fn checksum(&self) -> u64 {
        let bytes = self.parameters().flat_map(|x| x.to_le_bytes());
        bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        })
    }

    /// Returns the output of each layer, with one row per image. The last layer has one logit per class.
    pub(crate) fn forward(&self, images: ArrayView2<f32>) -> Vec<Array2<f32>> {
        let mut outputs: Vec<Array2<f32>> = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let input = outputs.last().map_or(images, |output| output.view());
            let mut output = input.dot(&layer.weight) + &layer.bias;
            if index + 1 < self.layers.len() {
                output.mapv_inplace(|x| x.max(0.0));
            }
            outputs.push(output);
        }
        outputs
    }

    /// Returns the mean loss over the images, and writes its gradients to `gradients`.
    pub(crate) fn backward(
        &self,
        images: ArrayView2<f32>,
        labels: &[usize],
        gradients: &mut Network,
    ) -> f32 {
        let mut outputs = self.forward(images);
        // The gradient of the loss with respect to the output of a layer, from the last to the first.
        let mut delta = outputs.pop().unwrap_or_default();
        let loss = softmax_cross_entropy(&mut delta, labels);
        for (layer, gradient) in self.layers.iter().zip(&mut gradients.layers).rev() {
            let input = outputs.pop();
            let input_view = input.as_ref().map_or(images, |input| input.view());
            general_mat_mul(1.0, &input_view.t(), &delta, 0.0, &mut gradient.weight);
            gradient.bias.assign(&delta.sum_axis(Axis(0)));
            if let Some(input) = input {
                delta = delta.dot(&layer.weight.t());
                // The derivative of ReLU is 1 above 0, and 0 elsewhere.
                Zip::from(&mut delta)
                    .and(&input)
                    .for_each(|d, &x| *d = if x > 0.0 { *d } else { 0.0 });
            }
        }
        loss
    }

    /// Returns the mean loss over the images and the accuracy: the fraction of the images whose greatest
    /// logit is that of their label.
    pub(crate) fn evaluate(&self, images: ArrayView2<f32>, labels: &[usize]) -> (f32, f64) {
        let mut logits = self.forward(images).pop().unwrap_or_default();
        let guesses = logits.rows().into_iter().map(greatest);
        let right = guesses.zip(labels).filter(|(guess, label)| guess == *label);
        let accuracy = right.count() as f64 / labels.len() as f64;
        let loss = softmax_cross_entropy(&mut logits, labels);
        (loss, accuracy)
    }
}

/// Returns the index of the first greatest value.
fn greatest(row: ArrayView1<f32>) -> usize {
    let first = |best, place| if row[place] > row[best] { place } else { best };
    (0..row.len()).fold(0, first)
}

/// Returns the mean over rows of `-ln softmax(logits)[label]`, and replaces the logits by its gradient.
fn softmax_cross_entropy(logits: &mut Array2<f32>, labels: &[usize]) -> f32 {
    let rows = labels.len() as f32;
    let mut loss = 0.0;
    for (mut row, &label) in logits.rows_mut().into_iter().zip(labels) {
        // Subtracting the greatest logit keeps the exponentials finite.
        let shift = row[greatest(row.view())];
        row.mapv_inplace(|x| x - shift);
        let of_label = row[label];
        row.mapv_inplace(f32::exp);
        let sum = row.sum();
        loss += sum.ln() - of_label;
        row.mapv_inplace(|x| x / sum / rows);
        row[label] -= 1.0 / rows;
    }
    loss / rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backward_pass_agrees_with_finite_differences() {
        let mut random = Random::new(3, 0);
        let mut network = Network::new(&[5, 7, 6, 4], &mut random);
        for layer in &mut network.layers {
            layer.bias.mapv_inplace(|_| 0.1 * random.normal());
        }
        let images = Array2::from_shape_simple_fn((3, 5), || random.normal());
        let labels = [2, 0, 3];
        let mut gradients = network.gradients();
        let loss = network.backward(images.view(), &labels, &mut gradients);
        assert!((loss - network.evaluate(images.view(), &labels).0).abs() < 1e-6);

        let h = 1e-3;
        let difference = |layer: usize, index: Option<(usize, usize)>, output: usize| {
            let loss_at = |step: f32| {
                let mut moved = network.clone();
                match index {
                    Some(at) => moved.layers[layer].weight[at] += step,
                    None => moved.layers[layer].bias[output] += step,
                }
                moved.evaluate(images.view(), &labels).0
            };
            (loss_at(h) - loss_at(-h)) / (2.0 * h)
        };
        for (layer, gradient) in gradients.layers.iter().enumerate() {
            for (at, &g) in gradient.weight.indexed_iter() {
                let d = difference(layer, Some(at), 0);
                assert!(
                    (g - d).abs() < 2e-3,
                    "layer {layer}, weight {at:?}: {g} and {d}"
                );
            }
            for (at, &g) in gradient.bias.indexed_iter() {
                let d = difference(layer, None, at);
                assert!(
                    (g - d).abs() < 2e-3,
                    "layer {layer}, bias {at}: {g} and {d}"
                );
            }
        }
    }

    #[test]
    fn equal_logits_lose_the_logarithm_of_the_classes() {
        let mut logits = Array2::zeros((2, 4));
        let loss = softmax_cross_entropy(&mut logits, &[1, 3]);
        assert!((loss - 4f32.ln()).abs() < 1e-6);
        assert_eq!(logits.row(0).to_vec(), [0.125, -0.375, 0.125, 0.125]);
    }
}
