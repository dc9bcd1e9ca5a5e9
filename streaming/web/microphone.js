// AudioWorklet: the microphone's sound as 16-bit PCM in pieces of 40 ms.

const PIECE_S = 0.04;

class MicrophoneProcessor extends AudioWorkletProcessor {
  #pcm = new Int16Array(Math.round(sampleRate * PIECE_S));
  #filled = 0;
  #energy = 0;

  process([input]) {
    for (const sample of input[0] ?? []) {
      this.#energy += sample * sample;
      this.#pcm[this.#filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32767)));
      if (this.#filled === this.#pcm.length) this.#post();
    }
    return true;
  }

  #post() {
    const level = Math.min(1, 4 * Math.sqrt(this.#energy / this.#filled));
    this.port.postMessage({ pcm: this.#pcm.buffer, level }, [this.#pcm.buffer]);
    this.#pcm = new Int16Array(this.#pcm.length || Math.round(sampleRate * PIECE_S));
    this.#filled = this.#energy = 0;
  }
}

registerProcessor("microphone", MicrophoneProcessor);
