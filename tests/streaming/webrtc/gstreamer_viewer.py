"""A viewer that is GStreamer's webrtcbin: offers over WHEP, decodes, prints what it saw and heard as JSON.

Runs in the system's Python, which has GStreamer's bindings: gstreamer_viewer.py WHEP_URL TOKEN CODEC PICTURES
"""

from __future__ import annotations

import json
import sys
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

URL, TOKEN, CODEC, PICTURES = *sys.argv[1:4], int(sys.argv[4])
RAW = {
    "video": "videoconvert ! video/x-raw,format=GRAY8 ! appsink name=sink emit-signals=true sync=false",
    "audio": "audioconvert ! audio/x-raw,format=S16LE,channels=1 ! appsink name=sink emit-signals=true sync=false",
}


class Viewer:
    def __init__(self):
        self.loop, self.seen = GLib.MainLoop(), {"pictures": 0, "sounds": 0, "loudest": 0, "contrast": 0}
        self.pipeline = Gst.Pipeline.new("viewer")
        self.peer = Gst.ElementFactory.make("webrtcbin", "peer")
        self.peer.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
        self.pipeline.add(self.peer)
        for media, codec, rate in (("video", CODEC, 90_000), ("audio", "OPUS", 48_000)):
            payload = 96 if media == "video" else 97
            caps = f"application/x-rtp,media={media},encoding-name={codec},clock-rate={rate},payload={payload}"
            direction = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
            self.peer.emit("add-transceiver", direction, Gst.Caps.from_string(caps))
        self.peer.connect("pad-added", self.arrived)
        self.peer.connect("notify::ice-gathering-state", self.gathered)

    def run(self):
        self.peer.connect("on-negotiation-needed", self.negotiate)
        self.pipeline.set_state(Gst.State.PLAYING)
        GLib.timeout_add_seconds(40, self.loop.quit)
        self.loop.run()
        self.pipeline.set_state(Gst.State.NULL)
        print(json.dumps(self.seen))

    def negotiate(self, peer):
        peer.emit("create-offer", None, Gst.Promise.new_with_change_func(self.offered))

    def offered(self, promise):
        promise.wait()
        reply = promise.get_reply()
        self.peer.emit("set-local-description", reply["offer"], Gst.Promise.new())

    def gathered(self, peer, _):
        if peer.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            return
        offer = peer.get_property("local-description").sdp.as_text()
        headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(URL, offer.encode(), headers)
        with urllib.request.urlopen(request) as reply:
            answer = reply.read().decode()
        _, message = GstSdp.SDPMessage.new_from_text(answer)
        description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
        peer.emit("set-remote-description", description, Gst.Promise.new())

    def arrived(self, peer, pad):
        decode = Gst.ElementFactory.make("decodebin", None)
        decode.connect("pad-added", self.decoded)
        self.pipeline.add(decode)
        decode.sync_state_with_parent()
        pad.link(decode.get_static_pad("sink"))

    def decoded(self, _, pad):
        media = pad.get_current_caps().get_structure(0).get_name().partition("/")[0]
        show = Gst.parse_bin_from_description(RAW[media], True)
        show.get_by_name("sink").connect("new-sample", getattr(self, media))
        self.pipeline.add(show)
        show.sync_state_with_parent()
        pad.link(show.get_static_pad("sink"))

    def video(self, sink):
        sample = sink.emit("pull-sample")
        shape = sample.get_caps().get_structure(0)
        data = sample.get_buffer().extract_dup(0, sample.get_buffer().get_size())
        self.seen["pictures"] += 1
        self.seen["contrast"] = max(data) - min(data)
        self.seen["size"] = [shape.get_value("width"), shape.get_value("height")]
        if self.seen["pictures"] >= PICTURES:
            GLib.idle_add(self.loop.quit)
        return Gst.FlowReturn.OK

    def audio(self, sink):
        buffer = sink.emit("pull-sample").get_buffer()
        samples = memoryview(buffer.extract_dup(0, buffer.get_size())).cast("h")
        self.seen["sounds"] += 1
        self.seen["loudest"] = max(self.seen["loudest"], max(map(abs, samples)))
        return Gst.FlowReturn.OK


Gst.init(None)
Viewer().run()
