/* What the fake upstream answers, byte for byte: the upstream sends it, the load tool expects it.
 *
 * The model of a request names the script, so that every gateway passes it on:
 *   whole-BYTES-DELAY             one JSON chat completion of BYTES bytes after DELAY ms
 *   stream-CHUNKS-PACE[-BURST]    CHUNKS chunks, one every PACE ms; BURST chunks a send where PACE is 0
 * Every content carries the nonce of its request: an answer that reached another client is seen. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONCE 8                 /* hex digits */
#define MODEL_MAX 64
#define CREATED "1735689600"
#define STREAM_ID "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG"

struct script {
    int stream;
    uint32_t count;             /* chunks, or bytes of the whole answer */
    uint32_t pace_ms;           /* between chunks, or before the whole answer */
    uint32_t burst;             /* chunks a send */
};

struct event {
    uint32_t end;               /* offset in `bytes` */
    int32_t nonce;              /* offset in `bytes`, or -1 */
};

struct body {
    char *bytes;
    size_t size;
    struct event *events;       /* a whole answer is one */
    uint32_t count;
};

static inline void nonce_text(uint32_t nonce, char text[NONCE]) {
    for (int at = NONCE - 1; at >= 0; at--, nonce >>= 4) text[at] = "0123456789abcdef"[nonce & 15];
}

/* 0 where the name is no script. */
static int script_parse(const char *model, struct script *script) {
    unsigned count, pace, burst = 0;
    int used = 0;
    if (sscanf(model, "whole-%u-%u%n", &count, &pace, &used) == 2 && !model[used]) {
        *script = (struct script){0, count, pace, 1};
        return count <= 64u << 20;
    }
    if (sscanf(model, "stream-%u-%u%n", &count, &pace, &used) != 2) return 0;
    if (model[used] && (sscanf(model + used, "-%u%n", &burst, &used), burst == 0)) return 0;
    *script = (struct script){1, count, pace, pace ? 1 : burst ? burst : 16};
    return count <= 1u << 20;
}

static void body_add(struct body *body, const char *text, int nonce_at) {
    size_t size = strlen(text);
    body->bytes = realloc(body->bytes, body->size + size + 1);
    memcpy(body->bytes + body->size, text, size + 1);
    body->events = realloc(body->events, (body->count + 1) * sizeof *body->events);
    body->events[body->count++] = (struct event){(uint32_t)(body->size + size), nonce_at < 0 ? -1 : (int32_t)body->size + nonce_at};
    body->size += size;
}

static void body_chunk(struct body *body, const char *model, const char *delta, const char *finish, int has_nonce) {
    char text[1024];
    snprintf(text, sizeof text,
             "data: {\"id\":\"" STREAM_ID "\",\"object\":\"chat.completion.chunk\",\"created\":" CREATED ",\"model\":\"%s\",\"choices\":"
             "[{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s}]}\n\n", model, delta, finish);
    char *mark = has_nonce ? strstr(text, "\"content\":\" ") : NULL;
    body_add(body, text, mark ? (int)(mark - text) + 12 : -1);
}

static void body_stream(struct body *body, const char *model, uint32_t chunks, int usage) {
    char text[512];
    body_chunk(body, model, "\"role\":\"assistant\",\"content\":\"\"", "null", 0);
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        snprintf(text, sizeof text, "\"content\":\" 00000000.%u\"", chunk);
        body_chunk(body, model, text, "null", 1);
    }
    body_chunk(body, model, "", "\"stop\"", 0);
    if (usage) {
        snprintf(text, sizeof text,
                 "data: {\"id\":\"" STREAM_ID "\",\"object\":\"chat.completion.chunk\",\"created\":" CREATED ",\"model\":\"%s\",\"choices\":[],"
                 "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":%u,\"total_tokens\":%u}}\n\n", model, chunks, chunks + 12);
        body_add(body, text, -1);
    }
    body_add(body, "data: [DONE]\n\n", -1);
}

static void body_whole(struct body *body, const char *model, uint32_t bytes) {
    char head[512], tail[512], *text;
    snprintf(head, sizeof head,
             "{\"id\":\"" STREAM_ID "\",\"object\":\"chat.completion\",\"created\":" CREATED ",\"model\":\"%s\",\"choices\":"
             "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\" 00000000", model);
    snprintf(tail, sizeof tail,
             "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":%u,\"total_tokens\":%u},\"system_fingerprint\":\"fp_44709d6fcb\"}",
             bytes / 8 + 1, bytes / 8 + 13);
    size_t fixed = strlen(head) + strlen(tail), words = bytes > fixed ? bytes - fixed : 0;
    text = malloc(fixed + words + 1);
    strcpy(text, head);
    for (size_t at = 0; at < words; at++) text[strlen(head) + at] = " token.."[at % 8];
    strcpy(text + strlen(head) + words, tail);
    body_add(body, text, (int)strlen(head) - NONCE);
    free(text);
}

/* The answer to `model`, with zeros for the nonce. The caller keeps it. */
static struct body body_of(const char *model, const struct script *script, int usage) {
    struct body body = {0};
    if (script->stream) body_stream(&body, model, script->count, usage);
    else body_whole(&body, model, script->count);
    return body;
}

#endif
