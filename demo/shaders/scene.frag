#version 330
// One soft key light with a shadow, a weak fill, two rim lights and a room that is brighter above.
uniform sampler2D picture;
uniform sampler2D shadow_map;
uniform vec3 camera;
uniform vec3 key;
uniform int material;  // 0 skin, 1 eyes, 2 teeth, 3 tongue, 4 hair, 5 shirt, 6 lashes and brows
uniform float cutout;
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec3 rest;
in float open;
in vec3 lit_at;
out vec4 colour;

const vec3 KEY_LIGHT = vec3(2.05, 1.93, 1.78);
const vec3 FILL = normalize(vec3(0.9, 0.15, 0.75));
const vec3 FILL_LIGHT = vec3(0.42, 0.46, 0.54);
const vec3 RIM_LEFT = normalize(vec3(0.95, 0.35, -0.5));
const vec3 RIM_RIGHT = normalize(vec3(-0.9, 0.5, -0.6));
const vec3 RIM_LIGHT = vec3(0.75, 0.78, 0.85);
const vec3 SKY = vec3(0.62, 0.64, 0.68);
const vec3 GROUND = vec3(0.34, 0.29, 0.26);

float hash(vec3 p) {
    p = fract(p * 0.3183099 + vec3(0.11, 0.17, 0.13));
    p *= 17.0;
    return fract(p.x * p.y * p.z * (p.x + p.y + p.z));
}

float noise(vec3 p) {
    vec3 i = floor(p), f = fract(p);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(mix(hash(i), hash(i + vec3(1, 0, 0)), f.x), mix(hash(i + vec3(0, 1, 0)), hash(i + vec3(1, 1, 0)), f.x), f.y),
               mix(mix(hash(i + vec3(0, 0, 1)), hash(i + vec3(1, 0, 1)), f.x),
                   mix(hash(i + vec3(0, 1, 1)), hash(i + vec3(1, 1, 1)), f.x), f.y), f.z);
}

float shadow() {
    const vec2 taps[12] = vec2[](vec2(-0.33, -0.84), vec2(-0.7, 0.46), vec2(0.96, -0.19), vec2(0.47, 0.77), vec2(0.18, -0.24),
        vec2(-0.94, -0.12), vec2(0.52, -0.77), vec2(-0.2, 0.62), vec2(0.35, 0.29), vec2(-0.46, -0.3), vec2(0.79, 0.33), vec2(-0.2, 0.1));
    float turn = hash(floor(vec3(gl_FragCoord.xy, 1.0))) * 6.2832;
    mat2 spin = mat2(cos(turn), -sin(turn), sin(turn), cos(turn));
    float seen = 0.0;
    for (int n = 0; n < 12; n++)
        seen += step(lit_at.z - 0.0025, texture(shadow_map, lit_at.xy + spin * taps[n] * 0.017).r);
    return seen / 12.0;
}

vec3 to_linear(vec3 c) { return pow(c, vec3(2.2)); }

float gloss(vec3 n, vec3 l, vec3 v, float roughness) {
    vec3 h = normalize(l + v);
    float a = roughness * roughness, nh = max(dot(n, h), 0.0), nl = max(dot(n, l), 0.0), nv = max(dot(n, v), 0.05);
    float d = nh * nh * (a * a - 1.0) + 1.0;
    float fresnel = 0.028 + 0.972 * pow(1.0 - max(dot(h, v), 0.0), 5.0);
    return a * a / (3.14159 * d * d) * fresnel * nl / (4.0 * mix(nv, 1.0, a * 0.5) * mix(nl, 1.0, a * 0.5) + 0.05);
}

void main() {
    vec4 texel = texture(picture, uv);
    if (cutout >= 0.0 && texel.a < cutout) discard;
    bool cornea = material == 1 && cutout == 0.0;
    if (cornea && texel.a > 0.5) discard;
    vec3 v = normalize(camera - position);
    vec3 n = normalize(normal);
    if (material >= 4 && dot(n, v) < 0.0) n = -n;
    vec3 albedo = to_linear(texel.rgb);
    float lips = material == 0 ? texel.a : 0.0;
    float roughness = 0.5, shine = 1.0;
    vec3 wrap = vec3(0.15);
    if (material == 0) {
        float e = 0.012;
        vec3 p = rest * 42.0;
        float here = noise(p), fine = noise(rest * 30.0);
        vec3 bump = vec3(noise(p + vec3(e * 42.0, 0, 0)), noise(p + vec3(0, e * 42.0, 0)), noise(p + vec3(0, 0, e * 42.0))) - here;
        n = normalize(n - bump * mix(0.10, 0.16, lips));
        albedo = pow(albedo, vec3(1.08, 1.13, 1.17));
        albedo *= 0.96 + 0.10 * (noise(rest * 9.0) * 0.5 + fine * 0.5);
        wrap = vec3(0.42, 0.22, 0.16);
        roughness = mix(0.5 - 0.06 * fine, 0.34, lips);
        shine = mix(0.85, 1.3, lips);
    } else if (material == 1) { roughness = 0.12; shine = 1.2; wrap = vec3(0.4, 0.3, 0.3); }
    else if (material == 2) { albedo = min(albedo * 1.7, vec3(0.9)) * mix(0.12, 1.0, smoothstep(0.95, 1.28, rest.z)); roughness = 0.25; wrap = vec3(0.4, 0.35, 0.3); }
    else if (material == 3) { roughness = 0.35; wrap = vec3(0.5, 0.25, 0.2); }
    else if (material == 5) { shine = 0.15; albedo *= 0.94 + 0.12 * noise(rest * 55.0); }
    else if (material == 6) { shine = 0.0; albedo *= vec3(0.8, 0.55, 0.42); }

    float lit = shadow();
    vec3 soft = pow(vec3(lit), vec3(0.75, 1.0, 1.08));
    float room = mix(open, 1.0, material == 2 ? 0.3 : 0.1);
    vec3 rooms = pow(vec3(room), material == 0 ? vec3(0.8, 1.05, 1.15) : vec3(1.0));
    vec3 diffuse = KEY_LIGHT * soft * pow(max((dot(n, key) + wrap) / (1.0 + wrap), 0.0), vec3(1.25));
    diffuse += FILL_LIGHT * rooms * max((dot(n, FILL) + wrap) / (1.0 + wrap), 0.0);
    vec3 rims = material == 2 || material == 3 ? vec3(0.0) : RIM_LIGHT * rooms;  // they have no shadow map: keep them out of the mouth
    diffuse += rims * (max(dot(n, RIM_LEFT), 0.0) + max(dot(n, RIM_RIGHT), 0.0)) * 0.8;
    diffuse += mix(GROUND, SKY, n.y * 0.5 + 0.5) * rooms * 0.62;
    vec3 light = albedo * diffuse * (material == 1 ? mix(0.35, 1.0, open) : 1.0);
    if (material == 4) {
        vec3 t = normalize(dFdx(position) * dFdy(uv.x) - dFdy(position) * dFdx(uv.x) + 1e-7);
        for (int k = 0; k < 2; k++) {
            vec3 l = k == 0 ? key : FILL;
            float th = dot(t, normalize(l + v));
            float streak = pow(sqrt(max(1.0 - th * th, 0.0)), 70.0) * 0.10 + pow(sqrt(max(1.0 - th * th, 0.0)), 14.0) * 0.05;
            light += (albedo * 2.5 + 0.06) * streak * (k == 0 ? KEY_LIGHT * lit : FILL_LIGHT * 1.2) * room * max(dot(n, l) + 0.3, 0.0);
        }
        light *= mix(0.35, 1.0, room);
    } else {
        light += KEY_LIGHT * lit * gloss(n, key, v, roughness) * shine * 2.2;
        light += FILL_LIGHT * room * gloss(n, FILL, v, roughness) * shine * 2.2;
        light += rims * (gloss(n, RIM_LEFT, v, roughness) + gloss(n, RIM_RIGHT, v, roughness)) * shine;
    }
    if (cornea) {
        vec3 shiny = vec3(0.9) * smoothstep(0.972, 0.985, dot(reflect(-v, n), normalize(key + vec3(0, 0.1, 0.5))));
        colour = vec4(shiny, shiny.r * open);
        return;
    }
    light *= 0.55;
    light = light * (light * 2.51 + 0.03) / (light * (light * 2.43 + 0.59) + 0.14);  // ACES fit (Narkowicz 2015)
    colour = vec4(pow(light, vec3(1.0 / 2.2)), cutout >= 0.0 && cutout < 0.4 ? texel.a : 1.0);
}
