"""Operators that mix all units of an axis inside of one kernel: recurrent layers and Fourier transforms.

Complex numbers, which come with the latter, hold one unit in both of their parts.
"""

from __future__ import annotations

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.labels import along, varying
from fpe_lightning.sites.tracing.operators import rule

RECURRENT = (
    "mkldnn_rnn_layer lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell quantized_lstm "
    "_cudnn_rnn _thnn_fused_lstm_cell _thnn_fused_gru_cell miopen_rnn"
)
FOURIER = "_fft_r2c _fft_c2c _fft_c2r"


@rule(*RECURRENT.split())
def recurrent(call: Call) -> None:
    """A recurrent layer feeds its own units back through weights, gate by gate, so that it keeps its width."""
    for tensor in call.tensors:
        call.freeze(call.labels(tensor), "a recurrent layer (LSTM, GRU, RNN) reads or computes it")
    call.emit(())


@rule("_pack_padded_sequence", "_pad_packed_sequence")
def pack(call: Call) -> None:
    """Sequences are cut to their lengths, or filled up again; the last axis keeps its units."""
    last = call.input.dim() - 1
    kept = []
    for label in call.labels(call.input):
        if varying(label) == (last,):
            kept.append(label)
        else:
            call.facts.freeze(label, "sequences of several lengths are packed along the axis")
    dim = call.outputs[0].dim()
    call.emit((along(label, dim - 1, dim) for label in kept), call.outputs[0])
    call.emit((), *call.outputs[1:])


@rule(*FOURIER.split())
def fourier(call: Call) -> None:
    """A Fourier transform adds up all entries of its axes; those of other axes stay apart."""
    axes = {axis % call.input.dim() for axis in call.arguments["dim"]}
    labels = []
    call.value(call.input)
    for label in call.labels(call.input):
        if set(varying(label)) <= axes:
            call.facts.freeze(label, "a Fourier transform runs over the axis")
        else:
            labels.append(call.merge(label, axes & set(varying(label))))
    call.emit(labels)


@rule("view_as_real")
def parts(call: Call) -> None:
    """Both parts of a complex number are of its unit."""
    call.emit(label.unsqueeze(-1) for label in call.labels(call.input))


@rule("view_as_complex")
def number(call: Call) -> None:
    """The two entries of the last axis become one number, so that their units are one."""
    last = call.input.dim() - 1
    call.value(call.input)
    call.emit(call.merge(label, {last} & set(varying(label))).squeeze(-1) for label in call.labels(call.input))


@rule("_is_all_true", "_is_any_true")
def check(call: Call) -> None:
    """One answer about all entries, as checks of arguments ask for; copies of units do not change it."""
    call.emit(())
