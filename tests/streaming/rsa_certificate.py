"""A certificate with an RSA key, for an end of aiortc that stands for the peers that have one."""

from __future__ import annotations

from aiortc.rtcdtlstransport import RTCCertificate, generate_certificate
from cryptography.hazmat.primitives.asymmetric import rsa


class RsaCertificate(RTCCertificate):
    """What GStreamer has, and pages that call generateCertificate with RSASSA-PKCS1-v1_5; OpenSSL's usual ciphers."""

    @classmethod
    def generateCertificate(cls):
        key = rsa.generate_private_key(65_537, 2048)
        return cls(key=key, cert=generate_certificate(key))

    def _create_ssl_context(self, srtp_profiles):
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(b"ALL")
        return context
